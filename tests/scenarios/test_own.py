import pickle

import pytest

from driftline import scenarios
from driftline.errors import ConfigError
from tests.scenarios.toy import toy

OWN = """
import driftline

@driftline.scenario
def backwards(data, rng, half=True):
    yield data.take(10)
    yield data.take(20, start=30)

def plain(data, rng):
    yield data
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "json.py"
    file.write_text(OWN)
    return file


def test_a_scenario_is_loaded_from_a_file_and_its_stream_pickles(own):
    backwards = scenarios.get(f"{own}:backwards")
    stream = backwards(toy())
    assert (len(stream), stream.name) == (30, "backwards")
    assert len(pickle.loads(pickle.dumps(stream))) == 30
    assert pickle.loads(pickle.dumps(backwards)) is backwards


def test_a_file_named_like_a_module_does_not_stand_in_its_way(own):
    import json
    import sys

    scenarios.get(f"{own}:backwards")
    assert sys.modules["json"] is json


def test_an_edited_file_is_read_again(own):
    scenarios.get(f"{own}:backwards")
    own.write_text(OWN.replace("take(10)", "take(7)"))
    assert len(scenarios.get(f"{own}:backwards")(toy())) == 27


def test_a_scenario_is_loaded_from_a_module():
    assert scenarios.get("driftline.scenarios.iid:iid") is scenarios.iid


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{own}:backward", r"unknown scenario in .*json.py: 'backward'; did you mean 'backwards'\?"),
        ("{own}:plain", r"plain is not a scenario; put @driftline.scenario above its def"),
        ("{folder}/nowhere.py:f", r"no file .*nowhere.py"),
        ("{folder}/broken.py:f", r"broken.py does not import: SyntaxError"),
        ("no_such_module_here:f", r"module 'no_such_module_here' does not import: ModuleNotFoundError"),
        ("si_blury", r"unknown scenario 'si_blury'; did you mean 'si_blurry'\?"),
    ],
)
def test_what_cannot_be_loaded_is_named(own, address, message):
    (own.parent / "broken.py").write_text("def f(:")
    with pytest.raises(ConfigError, match=message):
        scenarios.get(address.format(own=own, folder=own.parent))


def test_every_scenario_says_in_one_line_what_it_is():
    assert all(len(line) > 20 and line.endswith(".") for line in scenarios.names().values())
