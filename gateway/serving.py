"""What is in force: one policy and all that is derived from it. Replaced whole by a reload, never changed in place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.wire.dialect import ModelRules
from policy.accounts import Accounts
from policy.claims import Claim, claim_table
from policy.refusal import Reason, Refused
from policy.rules import Model, Policy, Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A policy in force."""

    policy: Policy
    accounts: Accounts
    tenants: Mapping[str, Tenant]  # by SHA-256 of the API key, hex
    models: Mapping[str, ModelRules]
    claims: tuple[Claim, ...]

    def authenticate(self, authorization: str | None) -> Tenant | Refused:
        """The tenant of an `Authorization: Bearer` header. The lookup is by digest, so its timing tells nothing of a key."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            message = "No API key was given. Send it as 'Authorization: Bearer KEY'."
            return Refused(reason=Reason.UNKNOWN_KEY, message=message)
        tenant = self.tenants.get(hashlib.sha256(key.strip().encode(errors="surrogatepass")).hexdigest())
        if tenant is None:
            return Refused(reason=Reason.UNKNOWN_KEY, message="This API key is not known here.")
        return tenant

    def model(self, name: str, tenant: Tenant) -> Model | Refused:
        """The model, if it exists and this tenant may use it. Both failures look alike from outside."""
        if name not in tenant.models or name not in self.policy.models:
            message = (
                f"The model does not exist or you may not use it. Yours: {', '.join(sorted(tenant.models)) or 'none'}."
            )
            return Refused(reason=Reason.UNKNOWN_MODEL, message=message, param="model")
        return self.policy.models[name]


def serving(policy: Policy, *, parameters: Mapping[str, int]) -> Serving:
    """Derive everything from a policy and the parameter counts of its models."""
    claims = claim_table(policy, parameters)
    return Serving(
        policy=policy,
        claims=claims,
        accounts=Accounts(policy, theft_bits={claim.model: claim.theft_bits for claim in claims}),
        tenants={digest: tenant for tenant in policy.tenants.values() for digest in tenant.key_digests},
        models={
            model.name: ModelRules(
                name=model.name,
                usage=model.usage != "drop",
                usage_claimed=model.usage == "charge",
                reasoning=model.reasoning == "release",
                embeddings=model.embeddings,
                dimensions=model.dimensions,
                token_ids=model.record_token_ids,
                cache_salted=model.prefix_cache_salt,
                tokens_max=model.answer_tokens_max,
                tokens_default=model.answer_tokens_default,
            )
            for model in policy.models.values()
        },
    )
