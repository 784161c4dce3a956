"""Targets and options: how they are read, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import run

from vtc.eval.load.addresses import is_loopback
from vtc.eval.load.options import LoadOptions
from vtc.eval.load.speed_limit import Limit
from vtc.eval.load.targets import parse_target, read_targets

HERE = "http://127.0.0.1:8000/v1"


def test_a_target_of_words() -> None:
    found = parse_target(
        f"half {HERE}/ model='my model' resize=0.25 pruner='dart(layer=2, pivots=4)' keep=64 limit=0.2,0.01,0.3 key=K "
        'body={"vtc": {"keep": 64}, "top_p": 0.5}'
    )
    assert (found.name, found.url, found.model, found.resize) == ("half", HERE, "my model", 0.25)
    assert found.setting == ("dart(layer=2, pivots=4)", 64)
    assert found.limit == Limit(0.2, 0.01, 0.3)
    assert found.body == {"vtc": {"keep": 64}, "top_p": 0.5}
    assert parse_target(f'a {HERE} body={{"vtc": {{"pruner": "dart", "keep": 0.5}}}}').setting == ("dart", 0.5)
    assert parse_target(f"a {HERE}").setting == (None, None)
    plugin = {"vtc_keep": 64, "vtc_pruner": "random"}
    assert parse_target(f"a {HERE} body={json.dumps({'mm_processor_kwargs': plugin})}").setting == ("random", 64)
    plugin["vtc_keep"] = 1.0
    assert parse_target(f"a {HERE} body={json.dumps({'mm_processor_kwargs': plugin})}").setting == (None, None)


def test_targets_of_a_file_come_before_those_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(
        f"defaults: {{url: '{HERE}', model: m}}\n"
        "targets:\n- name: full\n- {name: half, body: {vtc: {keep: 64}}, limit: {v: 0.5, s: 0, f: 0.25}}\n"
    )
    found = read_targets(file, [f"own {HERE}"])
    assert [t.name for t in found] == ["full", "half", "own"]
    assert [t.model for t in found] == ["m", "m", None]
    assert found[1].limit == Limit(0.5, 0.0, 0.25)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alone", "there is no url"),
        (f"a {HERE} modle=x", "'modle' is unknown: allowed are name, url, model"),
        (f"a {HERE} x", "'x' is no key=value"),
        (f"a {HERE} resize=2", "resize must be a share of the pixels in (0, 1], got '2'"),
        (f"a {HERE} keep=0", "--keep=0 is out of range"),
        (f"a {HERE} limit=1,2", "limit must be three numbers v,s,f"),
        (f"a {HERE} limit=2,0,1", "v in [0, 1], s >= 0, f in (0, 1]"),
        (f"a {HERE} limit=a,0,1", "could not convert"),
        (f"a {HERE} body={{", "body= is no valid JSON"),
        (f"a {HERE} body=[1]", "body must be an object"),
        (f'a {HERE} body={{"vtc": 3}}', "body must be an object"),
        (f'a {HERE} body={{"stream": false}}', "body may not set 'stream'"),
        ("a ftp://127.0.0.1/v1", "is no address of a server"),
        ("a http://me:secret@127.0.0.1/v1", "may hold no user"),
        (f"a '{HERE}", "No closing quotation"),
    ],
)
def test_what_is_wrong_with_a_target_is_said(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "must have `targets`"),
        ("targets: []\n", "`targets` must be a list"),
        ("targets: [{name: a}]\n", "target 1: there is no url"),
        ("targets: [{name: a, url: 'http://[::1]:80/v1', limit: 3}]\n", "limit must have the numbers v, s and f"),
        ("targets: [\n", "not valid YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        read_targets(tmp_path / "t.yaml", [])


def test_two_targets_of_one_name_and_none_at_all() -> None:
    with pytest.raises(ValueError, match="two targets are called 'a'"):
        read_targets(None, [f"a {HERE}", f"a {HERE}"])
    with pytest.raises(ValueError, match="there is no target"):
        read_targets(None, [])
    with pytest.raises(ValueError, match="no such file"):
        read_targets(Path("nowhere.yaml"), [])


def test_only_this_machine_is_loaded_unless_it_is_said() -> None:
    for url in ("http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:8/v1", "http://127.9.9.9/v1"):
        assert is_loopback(url)
    for url in (
        "http://10.0.0.1/v1",
        "https://api.example.org/v1",
        "http://0.0.0.0:80/v1",
        "http://localhost.evil.org/",
    ):
        assert not is_loopback(url)
    far = (parse_target("far http://10.0.0.1:8000/v1"),)
    with pytest.raises(ValueError, match=r"another machine.*--remote"):
        LoadOptions(targets=far)
    assert LoadOptions(targets=far, remote=True).base.name == "far"


def test_a_key_is_read_from_the_environment_and_stays_out_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    target = parse_target(f"a {HERE} key=MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ValueError, match="MY_KEY names an environment variable that is not set"):
        _ = target.headers
    monkeypatch.setenv("MY_KEY", "s3cret")
    assert target.headers == {"Authorization": "Bearer s3cret"}
    assert "s3cret" not in str(LoadOptions(targets=(target,)).identity)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--concurrency", "0"], "--concurrency must be numbers from 1 to 1024"),
        (["--concurrency", "a"], "--concurrency must be ints"),
        (["--rounds", "0"], "--rounds 0 is out of range: at least 1"),
        (["--minutes", "0"], "--minutes 0.0 is out of range"),
        (["--baseline", "b"], "--baseline 'b' is no target: there are a"),
        (["--picture-side", "4"], "--picture-side 4 is out of range"),
        (["--data", "nowhere"], "--data: no such folder"),
    ],
)
def test_options_that_are_wrong_are_said_in_one_line(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "load-test", "--target", f"a {HERE}", *given)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_measured_limit_and_a_given_one_contradict() -> None:
    with pytest.raises(ValueError, match="gives its limit, which --measure-limit would measure"):
        LoadOptions(targets=(parse_target(f"a {HERE} limit=0.1,0,0.5"),), measure_limit="bundled")
