"""The most recent rewards of each question, newest first, none too old."""

from workers.replay import ReplayBuffer, Replayed


def test_the_oldest_make_room():
    buffer = ReplayBuffer(2)
    for round, reward in ((1, 1.0), (2, 0.0), (3, 1.0)):
        buffer.add("q", round, [reward])
    assert buffer.recent("q", 4) == [Replayed(1.0, 3), Replayed(0.0, 2)]
    assert buffer.recent("other", 4) == []


def test_the_limit_on_age_counts_rounds():
    buffer = ReplayBuffer(3, max_age=2)
    buffer.add("q", 1, [1.0])
    buffer.add("q", 3, [0.0])
    assert buffer.recent("q", 4) == [Replayed(0.0, 3)]


def test_state_survives_json():
    import json

    buffer = ReplayBuffer(2)
    buffer.add("q", 1, [1.0, 0.0])
    again = ReplayBuffer(2)
    again.load(json.loads(json.dumps(buffer.state())))
    assert again.recent("q", 2) == buffer.recent("q", 2)
    again.add("q", 2, [0.5])
    assert again.recent("q", 3) == [Replayed(0.5, 2), Replayed(0.0, 1)]
