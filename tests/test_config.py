"""YAML to one frozen Config: what is accepted, and that every problem is said at once, with its key and line."""

from __future__ import annotations

import grp
import os
import pwd
import re
import struct
import textwrap
import time
from datetime import time as wall
from datetime import timedelta
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ingestd.config import (
    AzureAuthSettings,
    BasicAuthSettings,
    BearerAuthSettings,
    Config,
    ConfigError,
    Inbox,
    NoAuthSettings,
    SpoolSettings,
    find_file,
    format_size,
    load,
    parse,
    parse_duration,
    parse_size,
)
from ingestd.config.rules import WhenSection
from ingestd.lifecycle import AT_ONCE, CONDITIONS, Routable, Rule, TimeWindow

PROJECT = Path(__file__).resolve().parents[1]
EXAMPLE = PROJECT / "config.example.yaml"
ROOTS = {"destination", *Config.model_fields}
THE_ISSUES_OWN = """
inboxes:
  - path: ./drop
    take: move            # move | in_place
    settle: 2s
spool: ./spool
batch: {quiet_period: 5s, max_wait: 60s, max_bytes: 64MB, max_instances: 200}
destination: {url: "http://127.0.0.1:8080/v2", auth: none}
ledger: sqlite:///ledger.db
"""
LEAST = """
inboxes: [{path: drop}]
spool: spool
destination: {url: "http://127.0.0.1:8080/v2"}
ledger: sqlite:///ledger.db
"""


def parsed(text: str, *, base: Path = Path("/site")) -> Config:
    return parse(text, base=base)


def with_destination(text: str) -> str:
    return LEAST.replace('destination: {url: "http://127.0.0.1:8080/v2"}', f"destination: {text}")


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return [str(problem) for problem in caught.value.problems]


def found_in(text: str) -> list[str] | None:
    """The problems of a text, None where it has none."""
    try:
        parsed(text)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return None


def test_the_shortest_form_is_accepted_as_documented():
    config = parsed(THE_ISSUES_OWN)

    assert config.inboxes == (Inbox(path=Path("/site/drop"), take="move", settle=timedelta(seconds=2)),)
    assert config.spool == SpoolSettings(path=Path("/site/spool"))
    assert config.batch.max_bytes == 64_000_000
    assert config.batch.max_wait == timedelta(minutes=1)
    assert config.destination.auth == NoAuthSettings()
    assert config.ledger == "sqlite:////site/ledger.db"
    assert config.ledger_file == Path("/site/ledger.db")


def test_relative_paths_count_from_the_files_folder_wherever_it_is_read_from(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "config.yaml"
    file.write_text(THE_ISSUES_OWN)
    monkeypatch.chdir(tmp_path)

    config = load(Path("etc/config.yaml"))

    assert config.inboxes[0].path == tmp_path / "etc" / "drop"
    assert config.spool.path == tmp_path / "etc" / "spool"
    assert config.ledger_file == tmp_path / "etc" / "ledger.db"


def test_absolute_and_home_paths_are_kept():
    text = THE_ISSUES_OWN.replace("./drop", "/srv/drop").replace("./spool", "~/spool")
    config = parsed(text.replace("sqlite:///ledger.db", "sqlite:////var/lib/ledger.db"))

    assert config.inboxes[0].path == Path("/srv/drop")
    assert config.spool.path == Path.home() / "spool"
    assert config.ledger == "sqlite:////var/lib/ledger.db"


def test_the_file_is_looked_for_in_the_documented_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INGESTD_CONFIG", raising=False)
    monkeypatch.setattr("ingestd.config.reading.PLACES", (Path("config.yaml"), tmp_path / "etc" / "config.yaml"))

    with pytest.raises(ConfigError, match="-c FILE"):
        find_file()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "config.yaml").touch()
    assert find_file() == tmp_path / "etc" / "config.yaml"
    (tmp_path / "config.yaml").touch()
    assert find_file() == Path("config.yaml")
    monkeypatch.setenv("INGESTD_CONFIG", "/from/environment.yaml")
    assert find_file() == Path("/from/environment.yaml")
    assert find_file(Path("/from/option.yaml")) == Path("/from/option.yaml")


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
STRANGER = 65534


@pytest.mark.parametrize("where", ["here", "etc"])
@pytest.mark.parametrize(
    "what",
    [
        "folder for all",
        "folder for a group",
        "file for all",
        "file for a group",
        pytest.param("folder of another", marks=AS_ROOT),
        pytest.param("file of another", marks=AS_ROOT),
        pytest.param("link to another's file", marks=AS_ROOT),
        pytest.param("link into another's folder", marks=AS_ROOT),
        pytest.param("folder in an access list", marks=AS_ROOT),
    ],
)
def test_what_others_may_write_is_never_found_as_the_configuration(tmp_path, monkeypatch, where, what):
    """In a folder that others may write, `ingestd check` sent the token to the address that their file named."""
    folder, other = tmp_path / "here", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    file = folder / "config.yaml"
    file.write_text(LEAST)
    monkeypatch.chdir(folder if where == "here" else tmp_path)
    monkeypatch.delenv("INGESTD_CONFIG", raising=False)
    monkeypatch.setattr("ingestd.config.reading.PLACES", (Path("config.yaml"), file))
    assert load().file == file
    match what:
        case "folder for all":
            folder.chmod(0o1777)
        case "folder for a group":
            os.chown(folder, -1, _another_group())
            folder.chmod(0o775)
        case "file for all":
            file.chmod(0o666)
        case "file for a group":
            os.chown(file, -1, _another_group())
            file.chmod(0o664)
        case "folder of another":
            os.chown(folder, STRANGER, -1)
        case "file of another":
            os.chown(file, STRANGER, -1)
        case "folder in an access list":
            nobody = 0xFFFFFFFF
            entries = [(1, 7, nobody), (2, 7, STRANGER), (4, 5, nobody), (16, 7, nobody), (32, 5, nobody)]
            access_list = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
            os.setxattr(folder, "system.posix_acl_access", access_list)
        case _:
            file.rename(other / "config.yaml")
            os.chown(other if "folder" in what else other / "config.yaml", STRANGER, -1)
            file.symlink_to(other / "config.yaml")

    with pytest.raises(ConfigError, match=r"found by itself.* name it with -c FILE"):
        load()

    assert load(file).file == file
    monkeypatch.setenv("INGESTD_CONFIG", str(file))
    assert load().file == file


def _another_group() -> int:
    """A group that is not this user's own alone."""
    mine = [gid for gid in os.getgroups() if gid != os.getegid()]
    if os.geteuid() == 0:
        return STRANGER
    if not mine:
        pytest.skip("this user is in one group only")
    return mine[0]


def test_a_group_of_its_owner_alone_is_nobody_else(tmp_path, monkeypatch):
    """Where each user has a group of the same name, files are made for it as a matter of course (umask 002)."""
    user = pwd.getpwuid(os.geteuid())
    own = grp.getgrgid(user.pw_gid)
    if own.gr_name != user.pw_name or set(own.gr_mem) - {user.pw_name}:
        pytest.skip("this user has no group of its own")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INGESTD_CONFIG", raising=False)
    (tmp_path / "config.yaml").write_text(LEAST)
    for place, mode in ((tmp_path, 0o775), (tmp_path / "config.yaml", 0o664)):
        os.chown(place, -1, user.pw_gid)
        place.chmod(mode)

    assert load().file == tmp_path / "config.yaml"


def test_every_problem_is_said_at_once_with_key_and_line():
    text = """
inboxes:
  - path: drop
    take: mov
    setle: 2s
  - path: drop/inner
    priority: "3"
spool: {path: drop/spool, retain: forever}
batch: {quiet_period: 5, max_instances: 0}
destination: {url: "ftp://x"}
bogus: 3
"""

    assert problems(text) == [
        "line 2: ledger: is required",
        "line 3: inboxes[0].path: has inboxes[1].path inside it; put one of them elsewhere",
        "line 3: inboxes[0].path: has spool.path inside it; put one of them elsewhere",
        "line 4: inboxes[0].take: must be one of move, in_place",
        "line 5: inboxes[0].setle: unknown key; did you mean settle?",
        "line 7: inboxes[1].priority: must be a whole number from -100 to 100, or at_once",
        "line 8: spool.retain: must be a duration with its unit, like 30s, 15m, 24h or 1h30m",
        "line 9: batch.quiet_period: must be a duration with its unit, like 30s, 15m, 24h or 1h30m",
        "line 9: batch.max_instances: must be at least 1",
        "line 10: destination.url: must be an http:// or https:// address",
        "line 11: bogus: unknown key",
    ]


@pytest.mark.parametrize(
    "text,problem",
    [
        ("", "the configuration is empty"),
        ("# nothing\n", "the configuration is empty"),
        ("- a\n", "line 1: the configuration must be a mapping of keys to values"),
        ("a: [\n", "line 2: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: *b\n", "line 1: not valid YAML: found undefined alias 'b'"),
        ("a: !!python/object:os.system x\n", None),
        ("a: 2026-99-99\n", None),
        ("? [a, b]\n: c\n", None),
    ],
)
def test_what_is_no_configuration_is_said_so(text, problem):
    found = problems(text)

    assert problem is None or problem.partition(": ")[2] in found[0] or problem == found[0]


def test_a_key_that_stands_twice_is_a_problem():
    text = LEAST + "shutdown_grace: 1s\nshutdown_grace: 2s\n"

    assert problems(text) == ["line 7: shutdown_grace: stands twice, on lines 6 and 7; keep one"]
    beside = problems(LEAST + "retry: {base: 1s, base: 2s}\n")
    assert beside == ["line 6: retry.base: stands twice, on line 6; keep one"]


def test_a_section_with_everything_commented_out_has_its_defaults():
    text = LEAST + "batch:\n  # max_wait: 1s\nretry:\nreconcile:\nreader:\nlogging:\n"

    assert parsed(text) == parsed(LEAST)


def test_aliases_that_point_into_themselves_do_not_hang():
    assert problems("a: &a [*a]\n")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + at)}: &{chr(98 + at)} [{','.join(['*' + chr(97 + at)] * 9)}]\n" for at in range(9)
)


@pytest.mark.parametrize(
    "text, said",
    [
        (BOMB, "aliases"),
        (
            "a: &a {x: 1}\n"
            + "".join(f"m{at}: &m{at} {{<<: [{', '.join([f'*m{at - 1}' if at else '*a'] * 9)}]}}\n" for at in range(9)),
            "aliases",
        ),
        ("a: &a [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n", "itself"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "deep"),
        ("a: " + "{a: " * 20_000 + "1" + "}" * 20_000, "deep"),
        ("".join(f"{' ' * at}a:\n" for at in range(200)), "deep"),
        ("a: [" + "1, " * 30_000 + "1]", "more than 20000 values"),
        ("a: " + "1:59" + ":59" * 7_000, "longer"),
    ],
    ids=["aliases", "merges", "itself", "lists", "sections", "indented", "wide", "a number in base 60"],
)
def test_yaml_that_asks_for_more_than_any_configuration_is_refused_at_once(text, said):
    """300 bytes of aliases took 1.5 GB; 20,000 brackets ended as a fault of ours."""
    began = time.monotonic()

    [problem] = problems(text)

    assert said in problem
    assert time.monotonic() - began < 20


def test_a_file_that_is_not_text_names_the_line(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(b"a: 1\nb: \xff\n")

    with pytest.raises(ConfigError, match="line 2: not UTF-8 text"):
        load(file)


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text,value",
    [
        ("500ms", 0.5),
        ("2s", 2),
        ("15m", 900),
        ("24h", 86400),
        ("1d", 86400),
        ("1w", 604800),
        ("1h30m", 5400),
        ("0s", 0),
    ],
)
def test_durations_have_units(text, value):
    assert parse_duration(text) == timedelta(seconds=value)


@pytest.mark.parametrize("text", ["5", 5, 5.0, True, None, "", "s", "5 parsecs", "-5s", "5s5", "1e3s", "99999w", []])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    "text,value",
    [("64MB", 64_000_000), ("256MiB", 2**28), ("1.5GB", 1_500_000_000), ("10 kB", 10_000), ("7B", 7), ("1tib", 2**40)],
)
def test_sizes_have_units(text, value):
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["5", "MB", -1, True, 1.5, None, "5MBs", "-5MB", []])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


def test_a_bare_number_is_no_size_in_a_file():
    assert problems(LEAST + "batch: {max_bytes: 64000000}\n") == [
        "line 6: batch.max_bytes: must be a size with its unit, like 64MB or 256MiB"
    ]


@given(st.integers(0, 10**15))
def test_a_size_is_written_as_it_is_read(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("size", ["10kB", "8MB", "1TB", "10KiB", "512MiB", "7B"])
def test_a_size_is_written_as_documented(size):
    assert format_size(parse_size(size)) == size


@pytest.mark.parametrize(
    "drop,spool,ledger",
    [
        ("a", "a", "l.db"),
        ("a/b", "a", "l.db"),
        ("a", "a/b", "l.db"),
        ("a/../b", "b/./c", "l.db"),
        ("a", "b", "a/l.db"),
    ],
)
def test_folders_inside_one_another_are_refused(drop, spool, ledger):
    text = LEAST.replace("path: drop", f"path: {drop}").replace("spool: spool", f"spool: {spool}")

    assert len(problems(text.replace("ledger.db", ledger))) == 1


def test_a_link_does_not_hide_that_two_names_are_one_folder(tmp_path):
    (tmp_path / "spool" / "inside").mkdir(parents=True)
    (tmp_path / "drop").symlink_to(tmp_path / "spool" / "inside")

    with pytest.raises(ConfigError, match=r"inboxes\[0\].path: lies inside spool"):
        parsed(LEAST, base=tmp_path)


def test_the_ledger_may_live_in_the_spool():
    assert parsed(LEAST.replace("///ledger.db", "///spool/ledger.db")).ledger_file == Path("/site/spool/ledger.db")


@pytest.mark.parametrize(
    "url,said",
    [
        ("ftp://host/v2", "must be an http"),
        ("host/v2", "must be an http"),
        ("http://user:secret@host/v2", "must not carry a user name or password"),
        ("http://host/v2?x=1", "without ? or #"),
        ("http://host:99999/v2", "is no address"),
        ("http://ho st/v2", "spaces or control"),
        ("https://w-s.dicom.azurehealthcareapis.com", "write https://w-s.dicom.azurehealthcareapis.com/v2"),
        ("https://w-s.dicom.azurehealthcareapis.com/v3", "/v2"),
        ("http://w-s.dicom.azurehealthcareapis.com/v2", "must be https://"),
    ],
)
def test_an_address_that_cannot_work_is_refused_with_advice(url, said):
    [problem] = problems(with_destination(f'{{url: "{url}"}}'))

    assert said in problem
    assert "secret" not in problem


def test_a_trailing_slash_is_not_part_of_the_address():
    assert parsed(with_destination('{url: "http://host/v2/"}')).destination.url == "http://host/v2"


@pytest.mark.parametrize(
    "auth,expected",
    [
        ("none", NoAuthSettings()),
        ("{kind: bearer, token_file: t}", BearerAuthSettings(kind="bearer", token_file=Path("/site/t"))),
        ("{kind: bearer, token_env: TOKEN}", BearerAuthSettings(kind="bearer", token_env="TOKEN")),
        (
            "{kind: basic, username: u, password_file: p}",
            BasicAuthSettings(kind="basic", username="u", password_file=Path("/site/p")),
        ),
        ("azure", AzureAuthSettings(kind="azure")),
        ("{kind: azure, credential: managed_identity}", AzureAuthSettings(kind="azure", credential="managed_identity")),
    ],
)
def test_ways_to_say_who_we_are(auth, expected):
    assert parsed(with_destination(f'{{url: "https://host/v2", auth: {auth}}}')).destination.auth == expected


@pytest.mark.parametrize(
    "auth,said",
    [
        ("kerberos", "kind must be one of none, bearer, basic, azure, oauth2"),
        ("{}", "needs kind"),
        ("", "must be a section"),
        ("bearer", "needs either token_file or token_env"),
        ("{kind: bearer, token_file: a, token_env: B}", "needs either token_file or token_env"),
        ("{kind: bearer, token_env: 'A B'}", "name of an environment variable"),
        ("{kind: basic, username: 'a:b', password_env: P}", "must not contain a colon"),
        ("{kind: basic, password_env: P}", "destination.auth.username: is required"),
        ("{kind: azure, credential: secret}", "needs tenant_id, client_id, client_secret_file"),
        ("{kind: azure, credential: cli, client_id: x}", "does not use client_id"),
        ("{kind: oauth2, token_url: 'https://x/token', client_id: x}", "client_secret_file or client_secret_env"),
        ("{kind: oauth2, token_url: x, client_id: x, client_secret_env: X}", "token_url"),
        ("{kind: none, username: x}", "destination.auth.username: unknown key"),
    ],
)
def test_ways_that_cannot_work_are_refused(auth, said):
    found = problems(with_destination(f'{{url: "https://host/v2", auth: {auth}}}'))

    assert any(said in problem for problem in found), found


@pytest.mark.parametrize("key", ["password", "token", "client_secret"])
def test_a_secret_in_the_file_is_refused_and_not_repeated(key):
    kind = {"password": "basic", "token": "bearer", "client_secret": "azure"}[key]
    text = with_destination(f'{{url: "https://host/v2", auth: {{kind: {kind}, {key}: hunter2}}}}')

    found = "\n".join(problems(text))

    assert f"destination.auth.{key}: secrets do not belong into this file" in found
    assert "hunter2" not in found


def test_a_token_never_goes_over_plain_http_to_azure_auth():
    text = with_destination('{url: "http://host/v2", auth: azure}')

    assert "needs an https:// url" in problems(text)[0]
    assert parsed(text.replace("//host/", "//127.0.0.1:8080/")).destination.auth.kind == "azure"


@pytest.mark.parametrize(
    "section",
    [
        "retry: {base: 1h, cap: 1m}",
        "reader: {memory: 1MB}",
        "ledger: postgresql://me:secret@host/db",
        "ledger: postgresql://host/db?password=secret",
        "ledger: postgresql://host",
        "ledger: 'sqlite://'",
        "ledger: 'sqlite:///:memory:'",
        "inboxes: []",
        "inboxes: {path: drop}",
        "inboxes: [drop]",
        "inboxes: [{path: drop, ignore: '*.bak'}]",
        "inboxes: [{path: drop, ignore: [1]}]",
        "inboxes: [{path: drop, emptied_folders: yes}]",
        "inboxes: [{path: drop, take: in_place, emptied_folders: remove}]",
        "inboxes: [{path: ' '}]",
        "inboxes: [{path: drop, priority: 101}]",
        "inboxes: [{path: drop, priority: -101}]",
        "inboxes: [{path: drop, priority: yes}]",
        "inboxes: [{path: drop, priority: now}]",
        "spool: 5",
        "logging: {level: loud}",
        "logging: 3",
        "shutdown_grace: -1s",
        "reconcile: {interval: 0s}",
        "destination: {url: 'http://host/v2', api_version: 1}",
        "destination: {url: 'http://host/v2', tls: {ca_file: ca.pem}}",
        "destination: {url: 'https://host/v2', tls: {client_key: key.pem}}",
        "destination: {url: 'https://host/v2', max_posts: yes}",
        "destination: {url: 'https://host/v2', required: maybe}",
        "destination: {url: 'https://host/v2', required: 1}",
    ],
)
def test_values_that_cannot_work_are_refused(section):
    name = section.partition(":")[0]
    kept = [line for line in LEAST.strip().splitlines() if not line.startswith(f"{name}:")]

    found = problems("\n".join([*kept, section]))

    assert len(found) == 1
    assert name in found[0]


def test_no_inbox_is_needed_for_what_is_sent_by_hand():
    assert parsed(LEAST.replace("inboxes: [{path: drop}]\n", "")).inboxes == ()


def test_the_object_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parsed(LEAST).spool = SpoolSettings(path=Path("/elsewhere"))


def test_an_inboxs_name_follows_its_path_and_nothing_else():
    one = Inbox(path=Path("/srv/CT 1/ünïcode"))

    assert one.spool_name == Inbox(path=Path("/srv/CT 1/ünïcode"), priority=5, name="ct").spool_name
    assert one.spool_name != Inbox(path=Path("/srv/CT 2/ünïcode")).spool_name
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,47}", one.spool_name)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_folders_name_makes_a_name_that_is_safe_in_a_path(name):
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,47}", Inbox(path=Path("/srv") / name).spool_name)


@given(st.text(max_size=200))
def test_no_text_makes_anything_but_a_config_or_its_problems(text):
    assert found_in(text) != []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *ROOTS,
                        *Inbox.model_fields,
                        *SpoolSettings.model_fields,
                        "url",
                        "auth",
                        "kind",
                        "tls",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_structure_makes_anything_but_a_config_or_its_problems(values):
    assert found_in(yaml.safe_dump(values)) != []


SEVERAL = """
inboxes: [{path: drop, name: er}, {path: other}]
spool: spool
destinations:
  archive: {url: "https://host/v2", auth: azure}
  research: {url: "http://orthanc:8042/dicom-web", verify: content}
rules:
  - {when: {inbox: er, station: ["CT*", "MR*"], sop_class: CT Image Storage}, to: [archive, research]}
  - {when: {modality: RAW}, to: []}
  - {when: {}, to: [archive]}
ledger: sqlite:///ledger.db
"""


def test_several_destinations_are_told_in_their_order_and_by_their_names():
    config = parsed(SEVERAL)

    assert list(config.destinations) == ["archive", "research"]
    assert config.destinations["archive"].auth == AzureAuthSettings(kind="azure")
    assert [each.verify for each in config.destinations.values()] == [None, "content"]


@pytest.mark.parametrize("written, priority", [("-100", -100), ("100", 100), ("at_once", AT_ONCE)])
def test_priority_of_an_inbox_is_a_number_or_at_once(written, priority):
    config = parsed(LEAST.replace("{path: drop}", f"{{path: drop, priority: {written}}}"))

    assert config.inboxes[0].priority == priority


def test_rate_and_window_of_a_destination_are_read():
    text = 'rate: 1.5MiB/s, window: "19:00-07:00", time_zone: Europe/Zurich'
    destination = parsed(SEVERAL.replace("verify: content", text)).destinations["research"]

    assert destination.rate == 1_572_864
    assert destination.hours == TimeWindow(opens=wall(19), closes=wall(7), zone=ZoneInfo("Europe/Zurich"))
    assert parsed(SEVERAL).destinations["research"].hours is None


def test_the_short_form_is_one_destination_of_several():
    config = parsed(LEAST)

    assert config.destinations == {"default": config.destination}
    assert config == parsed(
        with_destination("").replace("destination: ", 'destinations: {default: {url: "http://127.0.0.1:8080/v2"}}')
    )


def test_rules_are_given_as_they_are_applied():
    rules = [each.rule for each in parsed(SEVERAL).rules]

    assert rules == [
        Rule(
            when={"inbox": ("er",), "station": ("CT*", "MR*"), "sop_class": ("CT Image Storage",)},
            to=("archive", "research"),
        ),
        Rule(when={"modality": ("RAW",)}, to=()),
        Rule(when={}, to=("archive",)),
    ]
    assert parsed(LEAST).rules == ()


def test_every_condition_of_a_rule_may_be_asked_for_and_no_other():
    assert tuple(WhenSection.model_fields) == CONDITIONS == tuple(Routable.__slots__)


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("archive: {", "Archive: {", "line 5: destinations.Archive: must be a name: at most 32 small letters"),
        ("archive: {", "1: {", "line 4: destinations[1]: must be text"),
        ("auth: azure", "auth: {kind: azure, credential: x}", "line 5: destinations.archive.auth.credential: must be"),
        ("auth: azure", "auth: {kind: basic, password: x}", "archive.auth.password: secrets do not belong into this"),
        (
            "http://orthanc:8042/dicom-web",
            "https://host/v2/",
            "line 6: destinations.research.url: is the address of archive",
        ),
        ("verify: content", "verfy: content", "line 6: destinations.research.verfy: unknown key; did you mean verify?"),
        ("verify: content", "verify: never", "line 6: destinations.research.verify: must be one of"),
        ("verify: content", "priority: 101", "line 6: destinations.research.priority: must be at most 100"),
        ("verify: content", "priority: high", "line 6: destinations.research.priority: must be a whole number"),
        ("verify: content", "rate: 8MB", "line 6: destinations.research.rate: must be a size a second, like 8MB/s"),
        ("verify: content", "rate: 8000000", "destinations.research.rate: must be a size a second, like 8MB/s"),
        ("verify: content", "rate: 9kB/s", "destinations.research.rate: must be from 10kB/s to 1TB/s"),
        ("verify: content", "rate: 0.001B/s", "destinations.research.rate: must be from 10kB/s to 1TB/s"),
        ("verify: content", "rate: 1.1TB/s", "destinations.research.rate: must be from 10kB/s to 1TB/s"),
        ("verify: content", "window: '19:00-07:00'", "research: window and time_zone go together"),
        ("verify: content", "time_zone: UTC", "research: window and time_zone go together"),
        ("verify: content", "window: '7-19', time_zone: UTC", "research.window: must be two times of the day"),
        ("verify: content", "window: '19:00-24:00', time_zone: UTC", "research.window: must be two times of the day"),
        ("verify: content", "window: '07:00-07:00', time_zone: UTC", "window: must begin and end at different times"),
        ("verify: content", "window: '19:00-07:00', time_zone: Zurich", "research.time_zone: must be a time zone that"),
        ("verify: content", "window: '19:00-07:00', time_zone: ../UTC", "time_zone: must be a time zone that"),
        (
            "verify: content",
            "window: '19:00-07:00', time_zone: localtime",
            "time_zone: must be the time zone of a place",
        ),
        (
            "verify: content",
            "window: '19:00-07:00', time_zone: right/UTC",
            "time_zone: must be the time zone of a place",
        ),
        ("ledger:", "destination: {url: 'http://h/v2'}\nledger:", "destination: is the short form of one of"),
        ("{inbox: er,", "{inbox: ward,", "rules[0].when.inbox: no inbox is called ward; named are er"),
        (
            ", name: er}",
            "}",
            "line 8: rules[0].when.inbox: no inbox is called er; none has a name: write `name: er` beside its path",
        ),
        ("other}", "other, name: er}", "line 2: inboxes[1].name: er is the name of another inbox, too"),
        ("name: er}", "name: ER}", "line 2: inboxes[0].name: must be a name"),
        (
            "to: [archive]",
            "to: [archve]",
            "line 10: rules[2].to[0]: no destination is called archve; there is archive,",
        ),
        ("to: [archive]", "to: [archive, archive]", "line 10: rules[2].to[1]: archive stands twice; keep one"),
        ("to: [archive]", "to: archive", "line 10: rules[2].to: must be a list"),
        (", to: [archive]", "", "line 10: rules[2].to: is required"),
        ("when: {}, ", "", "line 10: rules[2].when: is required"),
        ("modality: RAW", "modalty: RAW", "line 9: rules[1].when.modalty: unknown key; did you mean modality?"),
        (
            "modality: RAW",
            "modality: NO",
            "line 9: rules[1].when.modality: must be a glob or a list of globs, in quotes",
        ),
        ("modality: RAW", "modality: [RAW, 1]", "line 9: rules[1].when.modality: must be a glob or a list of globs"),
        ("modality: RAW", "modality: []", "line 9: rules[1].when.modality: must have at least one entry"),
        ("modality: RAW", 'modality: "a\\nb"', "line 9: rules[1].when.modality: must be printable text"),
        ("CT Image Storage", "CT Image Stroage", "rules[0].when.sop_class: no SOP class of stored objects is called"),
        ("rules:", "rule:", "line 7: rule: unknown key; did you mean rules?"),
    ],
)
def test_what_is_wrong_with_destinations_and_rules_is_told_by_key_and_line(old, new, expected):
    found = problems(SEVERAL.replace(old, new, 1))

    assert any(expected in problem for problem in found), found
    assert len(found) == (3 if old == "archive: {" else 2 if "basic" in new else 1), found


@pytest.mark.parametrize(
    "text, expected", [("destinations: {}", "at least one"), ("destinations:", "section"), ("", "required")]
)
def test_one_destination_is_wanted(text, expected):
    [problem] = problems(with_destination("").replace("destination: ", text))

    assert expected in problem


# What the example shows, taken apart: every key, commented out or not, with the value that stands beside it.

_KEY = re.compile(
    r"^(?P<indent> {0,4}(?:- )?)(?P<hash># )?(?P<key>[a-z_0-9]+):(?: (?P<value>[^#]*?))?(?P<note>\s*#.*)?$"
)


def shown_keys() -> dict[str, tuple[str, bool]]:
    """Dotted key: its text in the example, and whether that is said to be only an example of a value."""
    shown: dict[str, tuple[str, bool]] = {}
    section: list[tuple[int, str]] = []
    for line in EXAMPLE.read_text().splitlines():
        found = _KEY.match(line)
        if found is None or (
            line.startswith("#") and found["hash"] and not found["indent"] and found["key"] not in ROOTS
        ):
            continue
        indent = len(found["indent"])
        while section and section[-1][0] >= indent:
            section.pop()
        key = ".".join([*(name for _, name in section), found["key"]])
        shown[key] = ((found["value"] or "").strip(), "# example" in (found["note"] or ""))
        if not found["value"] and not found["hash"]:
            section.append((indent, found["key"]))
    return shown


def model_keys() -> dict[str, object]:
    """Dotted key: its default, over all sections; required keys have ``...``."""
    found: dict[str, object] = {}

    def walk(model: type[BaseModel], above: str) -> None:
        for name, field in model.model_fields.items():
            name = {"destinations": "destination"}.get(name, name)  # noqa: PLW2901 - the example shows the short form
            inner = [kind for kind in _models_in(field.annotation) if kind is not model]
            if inner and name != "rules":
                for kind in inner:
                    walk(kind, f"{above}{name}.")
            else:
                # A key of several kinds of auth stands in the example once, with the first one's default.
                found.setdefault(above + name, ... if field.is_required() else field.default)

    walk(Config, "")
    return found


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def test_the_example_works_as_it_stands():
    config = load(EXAMPLE)

    assert config.destination.url == "http://127.0.0.1:8080/v2"
    assert config == parse(LEAST.replace("path: drop", "path: ./drop"), base=PROJECT)


def test_the_example_shows_every_key_and_no_other():
    leaves = {key for key, (value, _) in shown_keys().items() if value}

    assert leaves == set(model_keys())


@pytest.mark.parametrize("key", [key for key in model_keys() if key != "destination.auth.kind"])
def test_the_example_shows_each_default(key):
    default = model_keys()[key]
    text, is_example = shown_keys()[key]

    shown = {"auto": None}.get(text, text)
    if default is ... or is_example:
        assert text
    elif isinstance(default, bool):
        assert text == str(default).lower()
    elif isinstance(default, timedelta):
        assert parse_duration(text) == default
    elif isinstance(default, int) and not text.isdigit():
        assert parse_size(text) == default
    elif isinstance(default, tuple):
        assert text == "[]"
    elif default is None:
        assert shown is None
    else:
        assert text == str(default)


def test_the_example_names_every_condition_of_a_rule():
    told = EXAMPLE.read_text().partition("`when` asks for")[2].partition("#   rules:")[0]

    assert [name for name in CONDITIONS if not re.search(rf"\b{name}\b", told)] == []


def test_the_examples_in_the_examples_comments_are_right():
    destinations, rules = (
        textwrap.dedent("\n".join(line[2:] for line in EXAMPLE.read_text().splitlines() if re.match(pattern, line)))
        for pattern in (r"#   (  \w+:  ?\{url|destinations:)", r"#   (  - \{when|rules:)")
    )
    text = LEAST.replace("{path: drop}", "{path: drop, name: er}").replace("destination: {", "# {")

    config = parsed(text + destinations.replace("https://...", "https://host") + "\n" + rules)

    assert list(config.destinations) == ["archive", "research"]
    assert [rule.to for rule in config.rules] == [("archive", "research"), (), ("archive",)]


def test_a_key_shown_as_an_example_has_no_default_to_show():
    examples = {key for key, (_, is_example) in shown_keys().items() if is_example}
    without_default = {key for key, default in model_keys().items() if default in (None, ...)}

    assert examples <= without_default


def test_the_package_brings_the_example(tmp_path):
    assert EXAMPLE.is_file()
    assert 'config.example.yaml" = "share/ingestd/config.example.yaml"' in (PROJECT / "pyproject.toml").read_text()


def test_reading_depends_on_no_environment_beyond_the_documented(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("INGESTD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("INGESTD_SPOOL", "/elsewhere")

    assert parsed(LEAST).spool.path == Path("/site/spool")
