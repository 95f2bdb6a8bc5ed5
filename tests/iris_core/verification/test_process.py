"""The limits of verifiers' processes, hostile responses, and programs of the user's that misbehave."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from iris_core.common.errors import VerificationError
from iris_core.config import VerificationPart
from iris_core.verification import worker
from iris_core.verification.process import NoVerdict, Process
from iris_core.verification.verdicts import Case, Verdict, parse_verdict
from iris_core.verification.verifier import open_verifier
from tests.processes import below, command_line, environment, pid_lives, wait_for

pytestmark = pytest.mark.unit

PATTERN = r"Answer: (.+)"
UPPER = """
    import json, sys
    for line in sys.stdin:
        case = json.loads(line)
        right = case["response"] == case["reference"].upper()
        print(json.dumps({"verdict": "right" if right else "wrong", "reason": case["prompt"]}))
"""


def program(tmp_path, text: str) -> dict[str, list[str]]:
    """Settings with a program of Python as the command."""
    path = tmp_path / "judge.py"
    path.write_text(textwrap.dedent(text))
    return {"command": [sys.executable, str(path)]}


def children() -> list[psutil.Process]:
    return [each for each in below(os.getpid()) if "iris_core.verification.worker" in command_line(each)]


@pytest.mark.parametrize(
    "text",
    [
        "$10^{10^{10^{10}}}$",
        "$(10^{8})!$",
        "(" * 5000 + "1" + ")" * 5000,
        "$" + "{" * 3000 + "$",
        "9" * 100_000,
        "__import__('os').system('touch PWNED')",
        "$__import__('os').system('touch PWNED')$",
        "().__class__.__bases__[0].__subclasses__()",
        "\0\ud800",
    ],
)
def test_hostile_mathematics_is_never_right_and_runs_nothing(judge, tmp_path, monkeypatch, text) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    hostile, plain = judge("math", [(text, "7"), ("$7$", "7")], timeout=3.0)
    assert hostile.verdict in ("wrong", "undecided")
    assert plain.verdict == "right"
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_never_ends_costs_its_response_only(judge) -> None:
    cases = [("a" * 40, "b"), ("b", "b"), ("a" * 41, "b"), ("aab", "aab")]
    found = judge("answer", cases, r"((?:a|a)*b)", timeout=2.0)
    assert [(each.verdict, each.reason) for each in found] == [
        ("undecided", "timeout"),
        ("right", "equal"),
        ("undecided", "timeout"),
        ("right", "equal"),
    ]


def test_hostile_json(judge, tmp_path) -> None:
    """Deep JSON is undecided; a large one needs more memory than there is; both leave a verifier that works."""
    path = tmp_path / "schema.json"
    path.write_text('{"type": "array"}')
    cases = [("[" * 100_000 + "]" * 100_000, None), ("[" + "[0]," * 3_000_000 + "0]", None), ("[]", None)]
    found = judge("json_schema", cases, schema_path=str(path), memory_gb=0.3, timeout=60.0)
    assert [(each.verdict, each.reason) for each in found] == [
        ("undecided", "nested too deeply"),
        ("undecided", "memory"),
        ("right", "valid"),
    ]


def test_a_reference_to_another_file_is_not_followed(judge, tmp_path) -> None:
    (tmp_path / "far.json").write_text('{"type": "string"}')
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"properties": {"far": {"$ref": (tmp_path / "far.json").as_uri()}}}))
    (found,) = judge("json_schema", [('{"far": 1}', None)], schema_path=str(path))
    assert found.verdict == "undecided"


def test_odd_characters_arrive_as_they_are(judge) -> None:
    texts = ["\ud800", "\0", "\n", "\u2028", "😀", "\x1b[31m"]
    found = judge("answer", [(f"<{text}>", f"<{text}>") for text in texts], r"<([^x]+)>")
    assert [each.verdict for each in found] == ["right"] * len(texts)
    (other,) = judge("answer", [("<\x1b[31m\n\ud800>", "<b>")], r"<([^x]+)>")
    assert other.reason == r"\x1b[31m \ud800 is not b"


def test_a_limit_that_nothing_starts_with_is_named() -> None:
    with (
        open_verifier(VerificationPart(kind="math", memory_gb=0.03), None) as verifier,
        pytest.raises(
            VerificationError, match=r"^verification.kind: .* math does not start \(.*\): check verif.* 0\.03$"
        ),
    ):
        verifier.verify([Case("", "1", "1")])


def test_equal_cases_are_judged_once_and_a_truncated_response_is_never_right(tmp_path) -> None:
    settings = program(
        tmp_path,
        f"""
        import json, sys
        for line in sys.stdin:
            open({str(tmp_path / "log")!r}, "a").write(line)
            case = json.loads(line)
            print(json.dumps({{"verdict": case["response"], "reason": 7}}))
        """,
    )
    cases = [Case("", "right", None), Case("", "right", None), Case("", "right", None, truncated=True)]
    with open_verifier(VerificationPart(kind="command", **settings), None) as verifier:
        found = verifier.verify([*cases, Case("", "wrong", None, truncated=True)])
    assert [(each.verdict, each.reason) for each in found] == [
        ("right", "7"),
        ("right", "7"),
        ("undecided", "truncated"),
        ("wrong", "7"),
    ]
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def test_a_program_judges_whole_responses(judge, tmp_path) -> None:
    """Without a flush after each line: its output is not buffered. The pattern is for the other kinds."""
    cases = [("Answer: B", "answer: b"), ("B", "b"), ("b", "b"), ("X" * 300_000, "x" * 300_000)]
    found = judge("command", cases, PATTERN, **program(tmp_path, UPPER))
    assert [(each.verdict, each.reason) for each in found] == [
        ("wrong", "What?"),
        ("right", "What?"),
        ("wrong", "What?"),
        ("right", "What?"),
    ]


BAD = {
    "crash": ("raise ValueError('no')", "ended with exit code 1: ValueError: no"),
    "quit": ("sys.exit(3)", "ended with exit code 3"),
    "signal": ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
    "hang": ("time.sleep(100)", "timeout"),
    "text": ("print('fine')", "no verdict in its output: fine"),
    "name": ("print(json.dumps({'verdict': 'good'}))", 'no verdict in its output: {"verdict": "good"}'),
    "list": ("print('[]')", "no verdict in its output: []"),
    "deep": ("print('[' * 100_000)", "no verdict in its output: [[["),
    "twice": ("print(json.dumps({'verdict': 'right'}) + '\\n' + '{}')", "no verdict in its output"),
    "flood": ("print('x' * 3_000_000)", "a line too long in its output"),
    "closed": ("os.close(1); time.sleep(100)", "closed its input or output"),
    "noise": ("sys.stderr.write('x' * 3_000_000); sys.exit(1)", "ended with exit code 1: xxx"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=list(BAD))
def test_a_program_that_fails_at_a_response_is_started_anew(judge, tmp_path, bad, reason) -> None:
    text = f"""
        import json, os, sys, time
        for line in sys.stdin:
            if "bad" in line:
                {bad}
            else:
                print(json.dumps({{"verdict": "right", "reason": "fine"}}))
    """
    seconds = 5.0 if reason == "timeout" else 60.0
    found = judge("command", [("1", ""), ("bad", ""), ("2", "")], timeout=seconds, **program(tmp_path, text))
    assert [each.verdict for each in found] == ["right", "undecided", "right"]
    assert found[1].reason.startswith(reason)
    assert len(found[1].reason) <= 160


def test_a_program_that_fails_at_every_response_is_an_error(judge, tmp_path) -> None:
    settings = program(tmp_path, "import nothing_of_the_kind")
    message = (
        r"^verification.command: '\S+python\S* \S+judge.py' gives no verdict on any of 4 responses \(ended with exit "
        r"code 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'\): it must write a line of JSON"
    )
    with pytest.raises(VerificationError, match=message):
        judge("command", [(str(number), str(number)) for number in range(4)], **settings)


def test_a_verifier_that_never_has_the_time_is_an_error(judge) -> None:
    message = (
        r"^verification.kind: answer gives no verdict on any of 4 responses \(timeout\): run again on a machine with "
        r"less to do, or raise verification.timeout, which is 0.2 s, or verification.memory_gb, which is 2$"
    )
    cases = [("a" * (40 + number), f"b{number}") for number in range(4)]
    with pytest.raises(VerificationError, match=message):
        judge("answer", cases, r"((?:a|a)*b)", timeout=0.2)
    assert [each.verdict for each in judge("answer", cases[:3], r"((?:a|a)*b)", timeout=0.2)] == ["undecided"] * 3


def test_a_program_that_fails_at_few_responses_is_no_error(judge, tmp_path) -> None:
    """The responses, or the reference that they share, may be what is wrong, and they would stop every later run."""
    settings = program(tmp_path, "import time; time.sleep(100)")
    found = judge("command", [("1", "a"), ("2", "b"), ("3", "c")], timeout=0.5, **settings)
    assert [each.verdict for each in found] == ["undecided"] * 3
    found = judge("command", [(str(number), "a") for number in range(5)], timeout=0.5, **settings)
    assert [each.verdict for each in found] == ["undecided"] * 5


def test_a_program_that_ends_after_its_verdict_is_started_anew(tmp_path) -> None:
    text = """
        import json, os, sys, time
        sys.stdin.readline()
        print(json.dumps({"verdict": "right", "reason": "fine"}))
        sys.stdout.flush()
        os.close(1)
        time.sleep(0.5)
    """
    settings = VerificationPart(kind="command", timeout=60.0, **program(tmp_path, text))
    process = Process(settings, None)
    found = []
    for number in range(3):
        found.append(process.judge(Case("", str(number), None)))
        if number == 0:  # after that, while it ends
            assert process._process is not None
            process._process.wait()
    process.close()
    assert [each.verdict for each in found] == ["right"] * 3


def test_a_second_verdict_is_not_that_of_the_next_response(tmp_path) -> None:
    twice = f"""
        import json, pathlib, sys, time
        for line in sys.stdin:
            verdict = json.dumps(dict(verdict="wrong" if json.loads(line)["response"] == "2" else "right"))
            print(verdict, flush=True)
            time.sleep(0.2)
            print(verdict, flush=True)
            pathlib.Path({str(tmp_path)!r}, "second").touch()
    """
    process = Process(VerificationPart(kind="command", timeout=60.0, **program(tmp_path, twice)), None)
    assert process.judge(Case("", "1", None)).verdict == "right"
    wait_for((tmp_path / "second").exists)
    with pytest.raises(NoVerdict, match="^output that no response asks for$"):
        process.judge(Case("", "2", None))
    process.close()


def test_the_processors_time_is_that_of_each_case(monkeypatch) -> None:
    """What a process has used for others is not counted."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(worker, "_limit", lambda kind, soft: limits.append((kind, soft)))
    monkeypatch.setattr(os, "times", lambda: (90.0, 10.0, 0.0, 0.0, 0.0))
    request = worker.Request(settings=VerificationPart(kind="answer", timeout=5.0), answer_pattern=None, parent=1)
    worker.serve(request, [Case("", "1", "1").line()], io.StringIO())
    monkeypatch.undo()
    assert limits == [(resource.RLIMIT_CPU, 106)]


@pytest.mark.parametrize("reason", ["timeout", "timeout: it ran longer than 4 s", "memory", "memory: it needs more"])
def test_what_is_at_a_limit(reason) -> None:
    assert Verdict("undecided", reason).at_limit
    assert not Verdict("wrong", reason).at_limit


def test_what_a_program_starts_is_killed_with_it(tmp_path) -> None:
    text = """
        import subprocess, sys, time
        sys.stdin.readline()
        for group in (None, 0):  # its own group, as `timeout` has
            sleep = [sys.executable, "-c", "import time; time.sleep(1000)", __file__]
            print(subprocess.Popen(sleep, process_group=group).pid, file=open(__file__ + ".started", "a"), flush=True)
        time.sleep(1000)
    """
    process = Process(VerificationPart(kind="command", timeout=10.0, **program(tmp_path, text)), None)
    with pytest.raises(NoVerdict, match="^timeout$"):
        process.judge(Case("", "", None))
    started = (tmp_path / "judge.py.started").read_text().split()
    assert len(started) == 2
    wait_for(lambda: not any(pid_lives(int(pid)) for pid in started))


def test_processes_end_with_the_verifier_and_with_its_process(tmp_path) -> None:
    with open_verifier(VerificationPart(kind="answer"), PATTERN) as verifier:
        verifier.verify([Case("", f"Answer: {n}", "1") for n in range(9)])
        assert children()
    assert not children()
    script = """
        import os, signal
        from iris_core.config import VerificationPart
        from iris_core.verification.verdicts import Case
        from iris_core.verification.verifier import open_verifier
        verifier = open_verifier(VerificationPart(kind="answer"), "(.+)")
        verifier.verify([Case("", "1", "1")])
        print([process._process.pid for process in verifier._processes if process._process], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert ran.returncode == -signal.SIGKILL
    (pid,) = map(int, ran.stdout.strip("[]\n").split(","))
    wait_for(lambda: not pid_lives(pid))


def test_the_limits_of_a_process(tmp_path) -> None:
    """The program prints its own limits in place of a reason."""
    text = """
        import json, resource, sys
        for line in sys.stdin:
            limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_CORE)]
            print(json.dumps({"verdict": "right", "reason": str(limits)}))
    """
    process = Process(VerificationPart(kind="command", memory_gb=1.5, **program(tmp_path, text)), None)
    assert process.judge(Case("", "", None)).reason == "[1500000000, 0]"
    process.close()


def test_secrets_of_the_environment_stay_outside(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_12345678901234567890")
    process = Process(VerificationPart(kind="answer"), PATTERN)
    process.judge(Case("", "Answer: 1", "1"))
    assert "HF_TOKEN" in os.environ
    (worker,) = map(environment, children())
    assert worker["PYTHONHASHSEED"] == "0"
    assert "HF_TOKEN" not in worker
    process.close()


def test_the_start_of_a_process_is_not_the_programs_time(tmp_path, monkeypatch) -> None:
    """Python itself takes longer to start here than a verdict may."""
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(6)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)]))
    settings = VerificationPart(kind="command", command=["sed", "-u", 's/.*/{"verdict": "right"}/'], timeout=5.0)
    process = Process(settings, None)
    assert process.judge(Case("", "", None)).verdict == "right"
    process.close()


@pytest.mark.parametrize("line", ["7", "[]", '{"verdict": "Right"}', '{"reason": "x"}', '{"verdict": ["right"]}'])
def test_a_verdict_of_another_form_is_refused(line) -> None:
    assert parse_verdict('{"verdict": "wrong"}').reason == ""
    with pytest.raises(ValueError, match="no verdict"):
        parse_verdict(line)
