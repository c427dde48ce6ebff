"""The command line: results on stdout, one clear error with exit code 2, nothing overwritten."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints
from unittest import mock

import pytest

import search_spaces
from nas.cli import main
from nas.cli.commands import COMMANDS
from nas.demo import Budget, DemoResult
from nas.recipes import load_recipe, recipe_names
from search_spaces.artifacts import file_hash
from search_spaces.errors import UserError
from supernets.phases import plan_phases


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def is_judged(result: Result) -> bool:
    """Exit code 1 exactly where a limit is said to be broken; on a busy machine the clock may break one."""
    return result.returncode == int("breaks a limit" in result.stderr)


def nas(*arguments: object, cwd: Path | None = None) -> Result:
    """Run a command in this process: a fresh one would spend its time on imports."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", ["nas", *map(str, arguments)]),
        pytest.raises(SystemExit) as caught,
    ):
        main()
    return Result(int(caught.value.code or 0), out.getvalue(), err.getvalue())


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    text = " ".join(result.stderr.split())
    assert text.count("error:") == 1
    for word in words:
        assert word in text, text
    assert len(result.stderr.strip().splitlines()) >= 3  # what is wrong, what is allowed, what to do next


def test_lists_as_text_and_json() -> None:
    assert "ofa-mobilenet-v3" in nas("spaces").stdout
    facts = json.loads(nas("spaces", "ofa-mobilenet-v3", "--json").stdout)
    assert facts["networks"] == 25 * 7371**5
    assert facts["extremes"]["largest"]["params"] == 7_664_760
    rows = json.loads(nas("devices", "--json").stdout)
    assert [row["available"] for row in rows if row["name"] == "onnxruntime-cpu"] == [True]
    assert "onnxruntime-cpu" in nas("devices").stdout


def test_search_export_verify_report(finished: Path) -> None:
    options = ("--samples", 24, "--points", 4, "--predictor", "ridge", "--limit", "latency=1s", "--force")
    again = nas("search", finished, *options, "--json", "--quiet")
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    rows = json.loads(again.stdout)
    assert 1 <= len(rows) <= 4
    exports = nas("export", finished, "--pick", "fastest", "--json")
    assert exports.returncode == 0, exports.stderr
    assert json.loads(exports.stdout)[0]["proven"] is True
    assert nas("export", finished, "--all").returncode == 0
    verified = nas("verify", finished, "--json")
    assert is_judged(verified), verified.stderr
    assert json.loads(verified.stdout)["summary"]["networks"] == len(rows)
    page = Path(nas("report", finished).stdout.strip())
    assert all(row["id"] in page.read_text() for row in rows)


def test_quantize_and_compare(finished: Path, tmp_path: Path) -> None:
    made = nas("quantize", finished, "--pick", "fastest", "--images", 32, "--sensitivity")
    assert made.returncode == 0, made.stderr
    assert "each layer alone in INT8" in made.stdout
    assert "measure it with: nas verify" in made.stderr
    assert json.loads(nas("quantize", finished, "--pick", "fastest", "--json").stdout)[0]["calibration_images"] == 32
    file = tmp_path / "another.onnx"
    file.write_bytes(next((finished / "exports").glob("*-int8.onnx")).read_bytes())
    compared = nas("compare", finished, file)
    assert is_judged(compared), compared.stderr
    for words in ("another", "-int8", "winner's curse", "INT8 takes"):
        assert words in compared.stdout
    assert "another" in (finished / "verified.json").read_text()


def test_an_unproven_file_is_exit_code_1(finished: Path) -> None:
    with mock.patch("nas.proving.TOLERANCE", 1e-12):
        result = nas("export", finished, "--pick", "fastest", "--force")
    assert result.returncode == 1
    assert "unproven.onnx is not proven: in onnxruntime-cpu it differs from torch" in result.stderr


def test_results_as_text(finished: Path, budget: Budget) -> None:
    profiled = nas("profile", finished)
    assert profiled.returncode == 0, profiled.stderr
    for words in ("layers; networks from", "held out", "MACs and an offset", "the same networks again"):
        assert words in profiled.stdout
    assert json.loads(nas("profile", finished, "--json").stdout)["quality"]["networks"] > 0
    options = ("--samples", budget.samples, "--points", 4, "--predictor", "ridge", "--force")
    found = nas("search", finished, *options)
    assert found.returncode == 0, found.stderr
    assert "latency ms (estimated)" in found.stdout
    tuned = nas("finetune", finished, "--pick", "fastest", "--epochs", "0.2")
    assert tuned.returncode == 0, tuned.stderr
    assert "same top-1" in nas("export", finished).stdout
    verified = nas("verify", finished)
    assert is_judged(verified), verified.stderr
    fastest = nas("search", finished, *options, "--json")
    assert f"{json.loads(fastest.stdout)[0]['id']}*" in verified.stdout  # fine-tuned
    assert "ofa-mobilenet-v3" in nas("spaces", "ofa-mobilenet-v3").stdout


def test_the_demo_tells_what_it_found(demo: DemoResult) -> None:
    text = "\n".join(demo.lines())
    for words in ("promised best, verified", "network alone, on", "median error", "files proven", "report.html"):
        assert words in text
    assert json.loads(json.dumps(demo.to_dict()))["passed"] is True


def test_a_broken_limit_is_exit_code_1(finished: Path) -> None:
    front = json.loads((finished / "front.json").read_text())
    front["limits"]["latency"] = 1e-6
    (finished / "front.json").write_text(json.dumps(front))
    result = nas("verify", finished)
    assert result.returncode == 1
    assert "breaks a limit" in result.stderr
    assert "latency <= 1e-06 ms" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train-supernet", "--data", "digitz", "--out", "x"], ["data set", "did you mean 'digits'"]),
        (["train-supernet", "--data", "digits", "--out", "x", "--space", "small-mobilnet"], ["did you mean 'small-mobilenet'"]),
        (["train-supernet", "--data", "digits", "--out", "x", "--recipe", "progresive"], ["did you mean 'progressive'"]),
        (["train-supernet", "--data", "digits", "--out", "x", "--epochs", "-1"], ["epochs is above 0"]),
        (["train-supernet", "--data", "digits", "--out", "x", "--resolution", "a,b"], ["--resolution a,b"]),
        (["train-supernet", "--data", "folder:nowhere", "--out", "x"], ["nowhere"]),
        (["train-supernet", "--data", "digits", "--out", "x", "--torch-device", "tpu"], ["cpu, cuda"]),
        (["search", "x", "--torch-device", "cuda:x"], ["'cuda:x'", "cuda:1"]),
        (["profile", "nowhere"], ["nowhere", "nas train-supernet"]),
        (["profile"], ["--space and --out"]),
        (["profile", "--space", "small-mobilenet", "--out", "t.json", "--device", "onnxruntime-cpi"], ["did you mean"]),
        (["search", "nowhere"], ["there is no run nowhere"]),
        (["report", "nowhere"], ["there is no run nowhere"]),
        (["spaces", "cells"], ["unknown space"]),
    ],
)
def test_bad_input_is_one_error(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    refused(nas(*arguments, cwd=tmp_path), *words)
    assert not any(tmp_path.rglob("*.safetensors"))


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(content) and None


def flip(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[len(data) // 2] ^= 255
        (run / name).write_bytes(data)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


@pytest.mark.parametrize(
    ("damage", "command", "words"),
    [
        (flip("supernet.safetensors"), ["search", "--force", "--samples", "40"], ["supernet.safetensors", "damaged"]),
        (remove("supernet.safetensors"), ["search", "--force", "--samples", "40"], ["not trained to the end"]),
        (overwrite("run.json", b"{"), ["search"], ["run.json is damaged"]),
        (overwrite("run.json", b"[]"), ["report"], ["run.json holds"]),
        (overwrite("tables/onnxruntime-cpu.json", b"{]"), ["search", "--force"], ["onnxruntime-cpu.json", "damaged"]),
        (overwrite("study.db", b"not a database"), ["search", "--force"], ["study.db"]),
        (overwrite("front.json", b"{}"), ["export"], ["front.json"]),
        (remove("front.json"), ["verify"], ["front.json", "nas search"]),
        (lambda run: None, ["search"], ["front.json is there already", "--force"]),
        (lambda run: None, ["search", "--force", "--limit", "latency=1us"], ["no network", "smallest latency"]),
        (lambda run: None, ["search", "--force", "--limit", "latency"], ["NAME=VALUE"]),
        (lambda run: None, ["search", "--force", "--samples", "3"], ["3 scored subnets"]),
        (lambda run: None, ["search", "--force", "--objective", "accuracy"], ["Two or more"]),
        (lambda run: None, ["search", "--force", "--objective", "accuracy", "--objective", "speed"], ["unknown objective"]),
        (lambda run: None, ["search", "--force", "--predictor", "rigde"], ["did you mean 'ridge'"]),
        (lambda run: None, ["export", "--pick", "beest"], ["no point of the front is 'beest'"]),
        (lambda run: None, ["verify", "--device", "gpu"], ["unknown device 'gpu'"]),
        (lambda run: None, ["export", "--opset", "9"], ["ONNX opset 9", "14 to"]),
        (lambda run: None, ["export", "--all", "--pick", "knee"], ["--all and --pick knee"]),
        (lambda run: None, ["export", "--softmax"], ["is exported already", "--force"]),
        (lambda run: None, ["quantize", "--max-loss", "-1"], ["at most -1.0% lost"]),
        (lambda run: None, ["compare", "nowhere.onnx"], ["nowhere.onnx does not exist"]),
        (lambda run: None, ["compare", str(Path(__file__))], ["is not an ONNX file"]),
    ],
)  # fmt: skip
def test_a_damaged_run_is_one_error_and_stays_as_it_is(
    finished: Path, damage: Callable[[Path], None], command: list[str], words: list[str]
) -> None:
    damage(finished)
    before = {path: file_hash(path) for path in finished.rglob("*") if path.is_file() and path.name != "study.db"}
    refused(nas(command[0], finished, *command[1:]), *words)
    after = {path: file_hash(path) for path in finished.rglob("*") if path.is_file() and path.name != "study.db"}
    assert after == before


def test_another_runs_folder_is_not_touched(finished: Path, tmp_path: Path) -> None:
    before = file_hash(finished / "run.json")
    refused(nas("train-supernet", "--data", "fake", "--out", finished), "holds another run: its", "--out")
    assert file_hash(finished / "run.json") == before
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    refused(nas("train-supernet", "--data", "digits", "--out", other), "exists and is not a run")
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]


def test_a_changed_export_is_not_verified(finished: Path) -> None:
    path = next((finished / "exports").glob("*.onnx"))
    path.write_bytes(path.read_bytes()[:-1])
    refused(nas("verify", finished), path.name, "was changed", "nas export")


def test_ctrl_c_keeps_what_was_done_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train-supernet", "--data", "fake:28x1x4", "--out", str(out), "--width", "0.25", "--resolution", "8,12"]
    arguments += ["--epochs", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-m", "nas", *arguments], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train full"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, rest
    assert "run the same command again" in rest
    assert (out / "training" / "checkpoint.safetensors").exists()
    assert not (out / "supernet.safetensors").exists()
    refused(nas("search", out), "not trained to the end")
    again = nas(*arguments)
    assert again.returncode == 0, again.stderr
    assert (out / "supernet.safetensors").exists()
    assert "trained already" in nas(*arguments).stderr


def numeric_options() -> list[tuple[str, str]]:
    """Every option of every command that takes a number."""
    found = []
    for name, command in COMMANDS.items():
        for parameter, hint in get_type_hints(command, include_extras=True).items():
            plain, *about = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if {plain, *get_args(plain)} & {int, float}:
                named = about[0].param_decls if about else ()
                found.append((name, named[0] if named else f"--{parameter.replace('_', '-')}"))
    return found


NEEDED = {  # what a command wants beside its run
    "train-supernet": ("--out", "new", "--data", "fake", "--epochs", "1"),
    "demo": ("--out", "new", "--data", "fake", "--device", "simulated"),
    "rank-check": ("RUN", "--epochs", "1"),
    "search": ("RUN", "--resume"),
    "measure": ("model.onnx",),
    "compare": ("RUN", "model.onnx"),
    "table-import": ("layers.csv", "--space", "small-mobilenet", "--out", "t.json"),
    "kit make": ("--space", "small-mobilenet", "--out", "kit"),
    "profile": ("--space", "small-mobilenet", "--out", "t.json", "--device", "simulated"),
}
FROM_MINUS_ONE = {("report-card", "--tau")}
FROM_ZERO = {"--seed", "--jobs", "--idle", "--tau", "--max-loss"}
FROM_ONE = {("worker", "--jobs")}
NOWHERE = {  # so that the command ends with what is missing, once the number was taken
    "train-supernet": ("--out", "new", "--data", "folder:nowhere"),
    "demo": ("--out", "new", "--device", "nowhere"),
    "rank-check": ("nowhere", "--epochs", "1"),
    "measure": ("nowhere.onnx",),
    "compare": ("nowhere", "model.onnx"),
    "kit make": ("nowhere", "--out", "kit"),
}


@pytest.mark.parametrize("value", ["-1", "0", "nan"])
@pytest.mark.parametrize(("command", "option"), numeric_options())
def test_numbers_that_make_no_sense_are_one_error(
    demo: DemoResult, tmp_path: Path, command: str, option: str, value: str
) -> None:
    if value == "-1" and (command, option) in FROM_MINUS_ONE:
        pytest.skip("a rank correlation may be -1")
    taken = value == "0" and option in FROM_ZERO and (command, option) not in FROM_ONE
    (tmp_path / "layers.csv").write_text("layer,ms\n")
    shutil.copy(next((demo.run / "exports").glob("*.onnx")), tmp_path / "model.onnx")
    given = NOWHERE.get(command, ("nowhere",)) if taken else NEEDED.get(command, ("RUN",))
    words = [str(demo.run) if word == "RUN" else word for word in given]
    result = nas(*command.split(), *words, option, value, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert ("nowhere" if taken else value) in result.stderr or (not taken and option in result.stderr), result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        *((command, option, str(2**63)) for command, option in numeric_options() if option == "--seed"),
        ("report-card", "--tau", "2"),
        ("profile", "--networks", "2"),
        ("worker", "--idle", "inf"),
    ],
)
def test_numbers_out_of_range_are_one_error(demo: DemoResult, tmp_path: Path, command: str, option: str, value: str) -> None:
    words = [str(demo.run) if word == "RUN" else word for word in NEEDED.get(command, ("RUN",))]
    result = nas(*command.split(), *words, option, value, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert option in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_seeds_up_to_the_largest_are_seeds(tmp_path: Path) -> None:
    shape = ("--width", 0.25, "--resolution", "8,12", "--epochs", 1)
    options = ("train-supernet", "--data", "fake:28x1x4", "--out", "run", *shape, "--dry-run", "--json", "--quiet")
    largest = nas(*options, "--seed", 2**63 - 1, cwd=tmp_path)
    assert largest.returncode == 0, largest.stderr


def test_options_beside_a_run_that_it_has_itself(finished: Path, tmp_path: Path) -> None:
    for more in (("--width", 0.5), ("--resolution", "32"), ("--out", "x.json"), ("--out", "x.json", "--dry-run")):
        refused(nas("profile", finished, "--device", "simulated", *more, cwd=tmp_path), "beside the run")
    (tmp_path / "l.csv").write_text("layer,ms\n")
    refused(nas("table-import", "l.csv", "--run", finished, "--out", "y.json", cwd=tmp_path), "--out beside the run")
    refused(nas("finetune", finished, "--pick", "knee", "--arch", "largest"), "--pick knee and --arch largest")
    refused(nas("kit", "make", "--space", "small-mobilenet", "--exports", cwd=tmp_path), "--exports without a run")
    for option, value in (("--width", 0.5), ("--measured-sizes", 2)):
        asked = ("kit", "make", finished, "--exports", option, value)
        refused(nas(*asked, cwd=tmp_path), f"--exports and {option} {value}")
        assert not (tmp_path / "kit").exists()
    refused(nas("kit", "make", finished, "--width", 0.5, cwd=tmp_path), "--width beside the run")
    refused(nas("verify", finished, "--results", "there.json"), "results there.json without a kit")
    refused(nas("profile", finished, "--dry-run", "--breakdown", "knee"), "--dry-run and --breakdown knee")


def test_a_demo_of_no_device_ends_before_it_begins(tmp_path: Path) -> None:
    refused(nas("demo", "--device", "foo", "--out", tmp_path / "run"), "unknown device 'foo'")
    assert not (tmp_path / "run").exists()


def test_a_complete_table_plans_nothing(finished: Path) -> None:
    done = nas("profile", finished, "--dry-run")
    assert "nothing would be measured" in done.stdout
    plan = json.loads(nas("profile", finished, "--dry-run", "--json").stdout)
    assert (plan["layers"], plan["networks"], plan["minutes"]) == (0, 0, 0)
    assert json.loads(nas("profile", finished, "--dry-run", "--force", "--json").stdout)["networks"] > 0


def test_what_comes_next_can_be_done(finished: Path) -> None:
    """The commands that commands end with: with their device, and first what is missing."""
    tuned = nas("finetune", finished, "--arch", "largest", "--epochs", 0.3)
    assert tuned.returncode == 0, tuned.stderr
    following = tuned.stdout.rpartition("Next: nas ")[2].split()
    assert following[:3] == ["export", str(finished), "--arch"]
    exported = nas(*following)
    assert exported.returncode == 0, exported.stderr
    assert exported.stderr.rstrip().endswith(f"Next: nas verify {finished}")  # the front is there already
    shutil.rmtree(finished / "exports")
    picked = nas("export", finished, "--pick", "fastest", "--opset", 18)
    rest, verify = picked.stderr.rstrip().rpartition("Next: ")[2].split(", then: ")
    assert rest == f"nas export {finished} --opset 18"  # in another format it would be refused
    refused(nas("verify", finished), f"Export them: {rest}")
    assert nas("quantize", finished, "--pick", "fastest", "--images", 32).stderr.rstrip().endswith(f"{rest}, then: {verify}")
    exported = nas(*rest.split()[1:])
    assert exported.stderr.rstrip().endswith(f"Next: {verify}")
    assert is_judged(nas(*verify.split()[1:]))
    (finished / "front.json").unlink()
    shutil.rmtree(finished / "exports")
    alone = nas("export", finished, "--arch", "smallest")
    assert alone.stderr.rstrip().endswith(f"Next: nas search {finished}")
    scored = nas("score", finished, "--device", "onnxruntime-cpu", "--n", 24)
    assert scored.stdout.rstrip().endswith(f"Next: nas search {finished} --device onnxruntime-cpu")


def test_every_file_of_a_run_can_be_read_by_whom_the_others_can(finished: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in finished.rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert len(modes) == 1, {path: oct(path.stat().st_mode) for path in finished.rglob("*") if path.is_file()}


def test_completion_is_there() -> None:
    assert "complete" in nas("--show-completion", "bash").stdout


def test_no_line_of_the_help_is_cut() -> None:
    shown = nas("--help").stdout
    assert "..." not in shown.partition("Commands:")[2]
    assert "kit             Measure a machine out of reach by hand\n" in shown


def test_the_recipes_that_are_offered_train_a_space() -> None:
    space = search_spaces.build("small-mobilenet", width=0.25, image=28, channels=1)

    hint = get_type_hints(COMMANDS["train-supernet"], include_extras=True)["recipe"]
    offered = set(re.findall(r"[a-z-]+", hint.__metadata__[0].help)) & set(recipe_names())
    assert {"progressive", "quick", "sandwich"} <= offered
    for name in recipe_names():
        recipe = load_recipe(name)
        if name in offered:
            assert plan_phases(recipe, space, steps=1000)
        else:
            with pytest.raises(UserError, match="no phase for the choice") as told:
                plan_phases(recipe, space, steps=1000)
            assert "take a recipe for a whole space: progressive" in told.value.next_step
