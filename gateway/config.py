"""Reading a policy and the weights it names from disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from backports.zstd import ZstdDict, ZstdError

from gateway.audit.quorum import POLICY_BYTES_MAX as WITNESS_POLICY_BYTES_MAX
from gateway.audit.quorum import BadQuorum, Quorum
from gateway.audit.quorum import parse as parse_quorum
from gateway.longest import too_long
from gateway.meters.tokens import TokenizerCounter, TokenizerError
from gateway.ports import TokenCounter
from policy.document import parse
from policy.mistakes import Mistakes
from policy.rules import Model, Policy
from policy.weights import WeightsError, parameters_in
from policy.yaml_nodes import outline

POLICY_BYTES_MAX = 1024 * 1024  # ten thousand tenants fit


class ConfigError(Exception):
    """The policy cannot be used. The message has a line for every mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A policy and the parameter counts of its models."""

    policy: Policy
    parameters: dict[str, int]
    text: str  # that it was read from
    counters: dict[str, TokenCounter] = field(default_factory=dict)  # by model, where usage is recounted
    quorum: Quorum | None = None  # of the audit log's witnesses; there exactly if the policy names them


def load(path: Path) -> Config:
    """Read and check everything. Raises `ConfigError` with all mistakes at once."""
    return config_of(_text(path), path)


def read_policy(path: Path) -> Policy:
    """The rules alone: neither weights nor other files that they name need to be here. Raises `ConfigError`."""
    policy = parse(_text(path), name=str(path))
    if isinstance(policy, Mistakes):
        raise ConfigError(policy.render())
    return policy


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(POLICY_BYTES_MAX + 1)
        text = data.decode()
    except OSError as fault:
        raise ConfigError(f"{path}: {fault.strerror}") from fault
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{path}: byte {fault.start} is not UTF-8") from fault
    if len(data) > POLICY_BYTES_MAX:
        raise ConfigError(f"{path}: over {POLICY_BYTES_MAX} bytes")
    return text


def config_of(text: str, path: Path) -> Config:
    """Check a policy that was read from `path`, and read the files that it names. Raises `ConfigError`."""
    policy = parse(text, name=str(path))
    if isinstance(policy, Mistakes):
        raise ConfigError(policy.render())
    unrecordable = tuple(too_long(policy))
    if unrecordable:
        document = outline(text)
        mistakes = tuple(
            sorted(document.mistake(("tenants", one.tenant), str(one), of_key=True) for one in unrecordable)
        )
        raise ConfigError(Mistakes(name=str(path), mistakes=mistakes).render())
    parameters: dict[str, int] = {}
    faults = []
    for model in policy.models.values():
        try:
            parameters[model.name] = _parameters(model)
        except (OSError, WeightsError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else fault
            faults.append(f"{path}: models.{model.name}.weights: {model.weights.file}: {reason}")
    counters, unusable = _counters(policy, path)
    quorum, unwitnessable = _quorum(policy, path)
    faults += unusable + _dictionary_faults(policy, path) + unwitnessable
    if faults:
        raise ConfigError("\n".join(faults))
    return Config(policy=policy, parameters=parameters, text=text, counters=counters, quorum=quorum)


def _parameters(model: Model) -> int:
    if model.weights.parameters is not None:
        return model.weights.parameters
    assert model.weights.file is not None
    with Path(model.weights.file).open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        size_bytes = file.seek(0, 2)
        return parameters_in(read, size_bytes)


def _counters(policy: Policy, path: Path) -> tuple[dict[str, TokenCounter], list[str]]:
    counters: dict[str, TokenCounter] = {}
    faults = []
    for model in policy.models.values():
        if model.tokenizer is not None:
            try:
                counters[model.name] = TokenizerCounter(Path(model.tokenizer.file), digest=model.tokenizer.sha256)
            except (OSError, TokenizerError) as fault:
                faults.append(f"{path}: models.{model.name}.tokenizer: {model.tokenizer.file}: {_reason(fault)}")
    return counters, faults


def _quorum(policy: Policy, path: Path) -> tuple[Quorum | None, list[str]]:
    rule = policy.audit.witnesses
    if rule is None:
        return None, []
    try:
        with Path(rule.policy).open("rb") as file:
            return parse_quorum(file.read(WITNESS_POLICY_BYTES_MAX + 1)), []
    except (OSError, BadQuorum) as fault:
        return None, [f"{path}: audit.witnesses.policy: {rule.policy}: {_reason(fault)}"]


def _dictionary_faults(policy: Policy, path: Path) -> list[str]:
    if policy.dictionary is None:
        return []
    try:
        ZstdDict(Path(policy.dictionary).read_bytes())
    except (OSError, ZstdError, ValueError) as fault:
        return [f"{path}: dictionary: {policy.dictionary}: {_reason(fault)}"]
    return []


def _reason(fault: Exception) -> str:
    return (fault.strerror or "cannot be read") if isinstance(fault, OSError) else str(fault)
