"""check: every problem at once, with what to do, and the exit code that says whose it is."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingestd.cli.common import ExitCode
from ingestd.emulator import Emulator
from tests.commanding import CONFIG, Rows, as_nobody, command_in
from tests.former_ledgers import make_former_ledger
from tests.ledgers import placed, sqlite_only


@pytest.fixture
def command(tmp_path, capfd):
    (tmp_path / "drop").mkdir()
    (tmp_path / "config.yaml").write_text(placed(CONFIG, tmp_path))
    return command_in(tmp_path, capfd)


def configure(folder: Path, destination: str = "", **replaced: str) -> None:
    text = CONFIG
    for old, new in replaced.items():
        text = text.replace({"drop": "./drop", "spool": "path: ./spool", "low": "1MB"}[old], new)
    if destination:
        text = text.replace('{url: "http://127.0.0.1:9/v2", auth: none}', destination)
    (folder / "config.yaml").write_text(placed(text, folder))


def found(said, result: str = "bad") -> list[str]:
    return [f"{check['name']}: {check['text']}" for check in said.json["checks"] if check["result"] == result]


@pytest.fixture(scope="module")
def server():
    with Emulator() as running:
        yield running


def test_all_is_well(tmp_path, command, server):
    configure(tmp_path, f'{{url: "{server.url}"}}')

    said = command("check")
    plain = command("check", "--json")

    assert said.code == plain.code == ExitCode.DONE
    assert said.out.endswith("\nready\n")
    assert found(plain) == []
    told = {check["text"] for check in plain.json["checks"]}
    assert "kind azure; change feed version 2; refuses duplicates" in told
    assert "agrees with the server's" in told


@pytest.mark.parametrize(
    "rules, expected",
    [
        ("[{when: {modality: CT}, to: [default]}]", ["SR, KO, PR, SEG"]),
        (
            "[{when: {modality: [CT, SR]}, to: [default]}, {when: {modality: MR}, to: []}]",
            ["KO, PR, SEG", "KO, PR, SEG"],
        ),
        ("[{when: {modality: CT}, to: [default]}, {when: {}, to: [default]}]", []),
        ("[{when: {station: CT*}, to: [default]}]", []),
    ],
)
def test_a_rule_that_tears_studies_apart_is_told(tmp_path, command, server, rules, expected):
    configure(tmp_path, f'{{url: "{server.url}"}}')
    with (tmp_path / "config.yaml").open("a") as file:
        file.write(f"rules: {rules}\n")

    said = command("check", "--json")

    assert said.code == ExitCode.DONE
    told = [text for text in found(said, "note") if " of their studies" in text]
    assert [text.partition(" get ")[2].removesuffix(" of their studies") for text in told] == expected


@pytest.mark.parametrize(
    "rules, is_told",
    [
        ("[{when: {station: CT*}, to: [default]}]", True),
        ('[{when: {station: CT*, modality: "*"}, to: [default]}]', True),
        ("[{when: {station: CT*}, to: [default]}, {when: {}, to: []}]", False),
        ('[{when: {station: "*"}, to: [default]}]', False),
        ("[]", False),
    ],
)
def test_rules_that_leave_files_unrouted_are_noted(tmp_path, command, server, rules, is_told):
    configure(tmp_path, f'{{url: "{server.url}"}}')
    with (tmp_path / "config.yaml").open("a") as file:
        file.write(f"rules: {rules}\n")

    said = command("check", "--json")

    assert said.code == ExitCode.DONE
    assert any("UNROUTED" in text for text in found(said, "note")) is is_told


def test_nothing_is_changed_by_looking(tmp_path, command):
    before = sorted(path.name for path in tmp_path.iterdir())

    command("check")

    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_every_problem_is_told_at_once(tmp_path, command):
    (tmp_path / "drop").rmdir()
    configure(
        tmp_path,
        '{url: "https://127.0.0.1:9/v2", auth: {kind: bearer, token_file: t}, tls: {ca_file: ca}}',
        low="900TB",
    )

    said = command("check", "--json")

    assert said.code == ExitCode.CONFIGURATION
    names = [line.partition(":")[0] for line in found(said)]
    assert names == ["inbox", "disk", "auth", "tls"]
    assert found(said, "note")[-1] == "server: not asked before auth and tls are mended"
    assert all(check["advice"] for check in said.json["checks"] if check["name"] in {"inbox", "disk"})


def test_a_server_that_does_not_answer_is_no_fault_of_the_configuration(command):
    said = command("check")

    assert said.code == ExitCode.TIMEOUT
    assert "ingestd can start" in said.out
    assert command("check", "--for-start").code == ExitCode.DONE


def test_a_server_that_is_something_else_is_to_be_mended(tmp_path, command, server):
    configure(tmp_path, f'{{url: "{server.url.removesuffix("/v2")}/elsewhere"}}')

    said = command("check")

    assert said.code == ExitCode.CONFIGURATION
    assert "is this the address of the DICOMweb service itself?" in said.out


def test_a_wrong_client_secret_is_told_as_that(tmp_path, command):
    with Emulator(auth=True) as guarded:
        (tmp_path / "secret").write_text("another")
        token_url = guarded.url.removesuffix("/v2") + "/oauth2/v2.0/token"
        auth = f'{{kind: oauth2, token_url: "{token_url}", client_id: owner, client_secret_file: secret}}'
        configure(tmp_path, f'{{url: "{guarded.url}", auth: {auth}}}')

        said = command("check", "--json")

    (line,) = found(said)
    assert line.startswith("auth: no token from 127.0.0.1")
    assert "401 invalid_client; the client id or its secret is wrong, or the secret has expired" in line


@pytest.mark.parametrize("client, wrong", [("reader", ["role"]), ("owner", [])])
def test_a_role_that_may_read_and_not_store_is_told(tmp_path, command, client, wrong):
    with Emulator(auth=True) as guarded:
        (tmp_path / "secret").write_text(client)
        (tmp_path / "secret").chmod(0o600)
        token_url = guarded.url.removesuffix("/v2") + "/oauth2/v2.0/token"
        auth = f'{{kind: oauth2, token_url: "{token_url}", client_id: {client}, client_secret_file: secret}}'
        configure(tmp_path, f'{{url: "{guarded.url}", auth: {auth}}}')

        said = command("check", "--json")

        assert [line.partition(":")[0] for line in found(said)] == wrong
        assert said.code == (ExitCode.CONFIGURATION if wrong else ExitCode.DONE)


def test_only_what_keeps_it_from_starting_counts_for_the_start(tmp_path, command):
    (tmp_path / "drop").rmdir()
    configure(tmp_path, '{url: "http://127.0.0.1:9/v2", auth: {kind: bearer, token_file: token}}', low="900TB")

    said = command("check", "--for-start")

    assert said.code == ExitCode.DONE
    assert "3 to be mended; ingestd can start" in said.out
    assert command("check", "--for-start", "--json").json["exit_code"] == 0


def test_a_ledger_of_another_server_keeps_it_from_starting(tmp_path, command):
    Rows(tmp_path).close()
    configure(tmp_path, '{url: "http://127.0.0.1:9/other/v2"}')

    said = command("check", "--for-start", "--json")

    assert said.code == ExitCode.CONFIGURATION
    [problem] = found(said)
    assert problem.startswith("ledger: ")
    assert "http://127.0.0.1:9/v2" in problem


def test_a_ledger_in_use_is_summed_up(tmp_path, command):
    rows = Rows(tmp_path)
    rows.refuse("x")
    rows.close()

    assert "1 file, 1 needs a person" in command("check").out


@sqlite_only
def test_a_ledger_of_an_older_ingestd_is_told_of_with_what_bringing_it_up_to_date_takes(tmp_path, command):
    rows = "INSERT INTO destination (url) VALUES ('http://127.0.0.1:9/v2')"
    file = make_former_ledger(tmp_path / "ledger.db", rows=rows)
    before = file.read_bytes()

    said = command("check", "--for-start")

    (told,) = (line for line in said.out.splitlines() if "of an older ingestd" in line)
    assert "keeps a copy as ledger.db.schema-9" in told
    assert said.code == ExitCode.DONE
    assert file.read_bytes() == before


def test_a_spool_that_is_a_file_is_to_be_mended(tmp_path, command):
    (tmp_path / "spool").touch()

    said = command("check", "--for-start", "--json")

    assert said.code == ExitCode.CONFIGURATION
    assert found(said) == [f"spool: {tmp_path}/spool is no folder"]


def test_others_looking_into_the_spool_are_noted(tmp_path, command):
    Rows(tmp_path).close()
    (tmp_path / "spool").chmod(0o755)

    assert f"spool: others may look into {tmp_path}/spool" in found(command("check", "--json"), "note")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_we_may_not_read_is_opened_to_us_and_not_we_to_its_owner(capfd):
    """The advice was to run ingestd as root, since root owns the folder."""
    with tempfile.TemporaryDirectory(prefix="ingestd-test-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "drop").mkdir(mode=0o700)
        (folder / "config.yaml").write_text(placed(CONFIG, folder))
        folder.chmod(0o755)
        command = command_in(folder, capfd)
        command("check", "--for-start")  # imports all of it, while we may still read it
        with as_nobody():
            said = command("check", "--for-start", "--json")

    [advice] = [check["advice"] for check in said.json["checks"] if check["name"] == "inbox"]
    assert advice == "give nobody the right to read it and to write in it (a shared group, setfacl or chown)"


def test_an_inbox_on_another_filesystem_is_noted(tmp_path, command):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second filesystem here")
    configure(tmp_path, drop="/dev/shm")

    assert any("another filesystem" in note for note in found(command("check", "--json"), "note"))


@pytest.mark.parametrize(
    "auth,env,bad",
    [
        ("{kind: bearer, token_env: TOK}", {}, ["auth: $TOK is not set, or empty"]),
        ("{kind: bearer, token_env: TOK}", {"TOK": "x"}, []),
        ("{kind: basic, username: u, password_env: TOK}", {"TOK": " "}, ["auth: $TOK is not set, or empty"]),
        ("{kind: basic, username: u, password_file: empty}", {}, ["is empty"]),
        ("{kind: basic, username: u, password_file: full}", {}, []),
        ("{kind: basic, username: u, password_file: absent}", {}, ["is not there"]),
    ],
)
def test_secrets_are_looked_for_and_never_shown(tmp_path, command, monkeypatch, auth, env, bad):
    (tmp_path / "empty").touch()
    (tmp_path / "full").write_text("hunter2")
    monkeypatch.delenv("TOK", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    configure(tmp_path, f'{{url: "http://127.0.0.1:9/v2", auth: {auth}}}')

    said = command("check", "--for-start", "--json")

    assert len(found(said)) == len(bad)
    assert all(words in problem for words, problem in zip(bad, found(said), strict=True))
    assert "hunter2" not in said.out


def test_a_secret_that_anybody_may_read_and_plain_http_are_noted(tmp_path, command):
    (tmp_path / "token").write_text("x")
    (tmp_path / "token").chmod(0o644)
    configure(tmp_path, '{url: "http://192.0.2.1/v2", auth: {kind: bearer, token_file: token}}')

    notes = found(command("check", "--for-start", "--json"), "note")

    assert any("anybody on this machine may read" in note for note in notes)
    assert any("unencrypted" in note for note in notes)


@pytest.mark.parametrize("what", ["config.yaml", "token", "secrets"])
def test_what_others_may_write_of_configuration_and_secrets_is_to_be_mended(tmp_path, command, what):
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "secrets" / "token").write_text("x")
    (tmp_path / "secrets" / "token").chmod(0o600)
    configure(tmp_path, '{url: "http://127.0.0.1:9/v2", auth: {kind: bearer, token_file: secrets/token}}')
    assert found(command("check", "--for-start", "--json")) == []
    place = tmp_path / "secrets" / "token" if what == "token" else tmp_path / what
    place.chmod(place.stat().st_mode | 0o002)

    said = command("check", "--for-start", "--json")

    [problem] = found(said)
    assert f"anybody may write {place}" in problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another group")
@pytest.mark.parametrize("what", ["config.yaml", "token"])
def test_who_may_drop_files_and_may_read_configuration_or_secrets_is_told(tmp_path, command, what):
    (tmp_path / "token").write_text("x")
    configure(tmp_path, '{url: "http://127.0.0.1:9/v2", auth: {kind: bearer, token_file: token}}')
    for name in ("config.yaml", "token"):
        (tmp_path / name).chmod(0o600)
    os.chown(tmp_path / "drop", -1, 60000)
    (tmp_path / "drop").chmod(0o2770)
    assert found(command("check", "--for-start", "--json")) == []
    os.chown(tmp_path / what, -1, 60000)
    (tmp_path / what).chmod(0o640)

    [problem] = found(command("check", "--for-start", "--json"))

    assert f"who may drop files (group #60000) may read {tmp_path / what}" in problem


def write_certificate(folder: Path) -> None:
    """``cert.pem`` and ``key.pem``, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_certificates_are_read(tmp_path, command):
    write_certificate(tmp_path)
    (tmp_path / "junk.pem").write_text("junk")

    def bad(tls: str) -> list[str]:
        configure(tmp_path, f'{{url: "https://127.0.0.1:9/v2", tls: {tls}}}')
        return found(command("check", "--for-start", "--json"))

    assert bad("{ca_file: cert.pem, client_cert: cert.pem, client_key: key.pem}") == []
    assert "junk.pem" in bad("{ca_file: junk.pem}")[0]
    assert "absent.pem is not there" in bad("{ca_file: absent.pem}")[0]
    assert "cert.pem" in bad("{client_cert: cert.pem, client_key: junk.pem}")[0]


def test_the_problems_of_a_configuration_are_json_too(tmp_path, command):
    (tmp_path / "config.yaml").write_text(CONFIG + "bogus: 1\n")

    said = command("check", "--json")

    assert said.code == said.json["exit_code"] == ExitCode.CONFIGURATION
    assert "bogus: unknown key" in said.json["checks"][0]["text"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_spool_of_another_user_names_that_user(tmp_path, command):
    Rows(tmp_path).close()
    os.chown(tmp_path / "spool", 65534, 65534)

    said = command("check", "--for-start", "--json")

    assert said.code == ExitCode.NO_PERMISSION
    assert "sudo -u nobody ingestd -c " in said.out
    assert " check --for-start --json" in said.out


def test_a_clock_that_is_off_is_noted(tmp_path, command):
    """A server of one answer, whose Date is a year old."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        configure(tmp_path, f'{{url: "http://127.0.0.1:{port}/v2"}}')
        script = (
            "import socket,sys\n"
            "s=socket.socket(fileno=int(sys.argv[1]))\n"
            "while True:\n"
            "    c,_=s.accept()\n"
            "    f=c.makefile('rb')\n"
            "    while (line:=f.readline()):\n"
            "        if line==b'\\r\\n':\n"
            "            c.sendall(b'HTTP/1.1 200 OK\\r\\nDate: Sun, 01 Jan 2023 00:00:00 GMT\\r\\n'\n"
            "                      b'Content-Type: application/dicom+json\\r\\nContent-Length: 2\\r\\n\\r\\n[]')\n"
        )
        serving = subprocess.Popen(
            ["python3", "-c", script, str(listener.fileno())], pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        )
        try:
            notes = found(command("check", "--json"), "note")
        finally:
            serving.kill()
            serving.wait()

    assert any("clock is" in note and "behind" in note for note in notes)
