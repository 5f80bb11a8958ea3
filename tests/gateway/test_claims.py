"""What a running gateway says of itself follows from its caps and its ledger, and carries its conditions."""

from gateway.claims import Claims


def claims_of(house):
    return Claims(
        serving=lambda: house.serving,
        ledger=house.ledger,
        held=house.held,
        registry=house.registry,
        clock=house.clock,
        codes="c" * 64,
    )


async def test_before_anything_left_nothing_is_claimed_to_have_been_charged(fakes):
    house = fakes.House()
    document = await claims_of(house).document()
    (model,) = document["models"]
    assert all(claim["charged_bits"] == 0 for claim in model["C2"])
    assert model["C3"]["ratio"] is None
    assert model["conditions"]


async def test_what_was_charged_and_refunded_is_what_the_claims_say(fakes):
    house = fakes.House(meters=[fakes.Meter(2, "zstd")])
    async with house.running():
        await house.ask([fakes.said("x" * 400)])
        (model,) = (await claims_of(house).document())["models"]
    (c2, *_) = model["C2"]
    assert c2["charged_bits"] == model["C3"]["settled_bits"] < model["C3"]["raw_bits"]
    assert f"2^({c2['charged_bits']} - n)" in c2["text"]
    assert "c" * 16 in c2["text"]


async def test_the_days_are_those_of_the_caps(fakes):
    house = fakes.House()
    document = await claims_of(house).document()
    assert document["models"][0]["C4"]["text"] == house.serving.claims[0].days
    assert document["policy"] == house.serving.policy.digest
