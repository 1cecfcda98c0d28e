"""Programs written for the older SDK: they catch what they always caught, and lose nothing to one bad file."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import re
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import requests

from ingestd.dicomweb import (
    DicomWebError,
    MisconfiguredServer,
    NotAuthorized,
    NotFound,
    Refused,
    Throttled,
    Timeouts,
    TokenError,
    Unavailable,
    Unintelligible,
)
from ingestd.dicomweb.sdk import (
    DicomClient,
    DicomClientInterface,
    SdkError,
    TokenCache,
    TokenRefreshError,
    make_get_token_func,
)
from ingestd.emulator import Emulator
from tests.builders import fresh_uid, write_instance
from tests.http_server import Conversation, ScriptedServer, answer, certificate, server_context
from tests.orthanc import Orthanc, requires_orthanc

FAILED, STORED, REASON, SOP = "00081198", "00081199", "00081197", "00081155"
UID = re.compile(rb"1\.2\.826\.0\.1\.3680043\.10\.1\.999\.3\.\d+")  # a SOP Instance UID of the builders


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("emulator"), fsync=False) as emulator:
        yield emulator


def stored_in(sdk_results) -> set[str]:
    return {uid for result in sdk_results for uid in result.stored}


def hang_up(conversation: Conversation) -> None:
    conversation.read_body()
    conversation.hang_up(reset=True)


def say_nothing(conversation: Conversation) -> None:
    conversation.wait_for_end()


def break_off(conversation: Conversation) -> None:
    conversation.send(answer(b"[", length=500))
    conversation.hang_up()


@pytest.mark.parametrize(
    "step,theirs,ours,status",
    [
        (answer(b"{}", status="400 Bad Request"), requests.HTTPError, Refused, 400),
        (answer(status="401 Unauthorized"), requests.HTTPError, NotAuthorized, 401),
        (answer(status="404 Not Found"), requests.HTTPError, NotFound, 404),
        (answer(status="429 Too Many Requests", headers={"Retry-After": "7"}), requests.HTTPError, Throttled, 429),
        (answer(status="503 Service Unavailable"), requests.HTTPError, Unavailable, 503),
        (answer(status="302 Found", headers={"Location": "/"}), requests.HTTPError, MisconfiguredServer, 302),
        (hang_up, requests.ConnectionError, Unavailable, None),
        (b"220 mail.example ESMTP\r\n\r\n", requests.ConnectionError, Unintelligible, None),
        (say_nothing, requests.Timeout, Unavailable, None),
        (break_off, requests.RequestException, Unintelligible, 200),
        (answer(b"<html>", content_type="text/html"), requests.RequestException, DicomWebError, 200),
    ],
)
def test_callers_catch_what_they_always_caught_and_our_own_kind(step, theirs, ours, status):
    with ScriptedServer(step) as server:
        sdk = DicomClient(server.url)
        sdk.client.transport.timeouts = Timeouts(read=timedelta(seconds=0.3))
        with pytest.raises(theirs) as raised:
            sdk.get_patient_study_ids("P1")

    error = raised.value
    assert isinstance(error, ours)
    assert isinstance(error, SdkError)
    assert not isinstance(error, requests.HTTPError) or error.response.status_code == status >= 300
    assert (error.response.status_code if error.response is not None else None) == status
    assert "P1" not in str(error), "the URL, and in it the patient, stays out of the words"
    assert error.request is None, "there is our token in it"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.status) == (str(error), status)


def test_every_way_of_a_connection_not_to_come_about_is_a_connection_error(tmp_path):
    cert = certificate(tmp_path, "server")
    with ScriptedServer(b"", tls=server_context(cert)) as server, pytest.raises(requests.ConnectionError) as distrusted:
        DicomClient(server.url).delete_dicom("1.2.3")
    with pytest.raises(requests.ConnectionError) as refused:
        DicomClient(server.url.replace("https", "http")).delete_dicom("1.2.3")

    assert isinstance(distrusted.value, MisconfiguredServer)
    assert isinstance(refused.value, Unavailable)
    assert (distrusted.value.response, refused.value.response) == (None, None)


def test_token_that_cannot_be_had_is_told_as_no_connection_and_no_older_answer_hangs_on_it():
    tokens = iter(["e30.e30.x"])

    def get_token() -> str:
        for token in tokens:
            return token
        raise TokenError("no token today")

    with ScriptedServer(answer(status="404 Not Found")) as server:
        sdk = DicomClient(server.url, TokenCache(get_token))
        with pytest.raises(NotFound):
            sdk.delete_dicom("1.2.3")
        with pytest.raises(requests.ConnectionError) as raised:
            sdk.delete_dicom("1.2.3")
    with ScriptedServer(answer(b'{"error": "invalid_client"}', status="401 Unauthorized")) as server:
        info = {"authority": server.url, "client_id": "c", "client_secret": "s", "oauth_resource": "r"}
        with pytest.raises(requests.RequestException) as refused:
            TokenCache(make_get_token_func(info)).get_token()

    assert isinstance(raised.value, TokenError)
    assert raised.value.response is None
    assert isinstance(refused.value, TokenError)


@pytest.mark.parametrize("ends", ["\nthe-rest", "\r", "\nX-Injected: y", "\u043a", "\x00"])
def test_token_that_no_header_can_hold_is_told_of_without_it(ends):
    with ScriptedServer(answer()) as server:
        sdk = DicomClient(server.url, TokenCache(lambda: f"the-token-itself{ends}-"))
        with pytest.raises(requests.RequestException) as raised:
            sdk.delete_dicom("1.2.3")
    assert isinstance(raised.value, TokenError)
    assert "the-token-itself" not in "".join(traceback.format_exception(raised.value)) + repr(vars(raised.value))


def test_token_may_end_its_line_as_a_commands_output_does(server):
    sdk = DicomClient(server.url, TokenCache(lambda: "e30.e30.x\n"))
    assert sdk.get_patient_study_ids("nobody") == []


def test_refused_file_brings_the_servers_whole_answer(server, tmp_path):
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM file\n" * 20)
    nobody = write_instance(tmp_path / "nobody.dcm", patient_id=None)
    sdk = DicomClient(server.url)

    for file in (text, nobody):
        with pytest.raises(requests.HTTPError) as raised:
            sdk.upload_dicom_file(file)
        error = raised.value
        assert error.response.status_code == 409
        assert error.response.headers["Content-Type"].startswith("application/dicom+json")
        assert error.response.json() == json.loads(error.response.text)
        [item] = error.response.json()[FAILED]["Value"]
        assert item[REASON]["Value"] == [43264]
        assert isinstance(error, Refused)
        assert len(error.results) == 1


def test_answer_on_the_error_is_utf8_whatever_is_in_it(tmp_path):
    body = json.dumps({FAILED: {"vr": "SQ", "Value": [{REASON: {"vr": "US", "Value": [272]}}]}, "00100010": "é"})
    body = json.dumps(json.loads(body), ensure_ascii=False).encode()
    with ScriptedServer(answer(body, status="400 Bad Request"), answer(body, status="409 Conflict")) as server:
        sdk = DicomClient(server.url)
        with pytest.raises(requests.HTTPError) as asked:
            sdk.get_patient_study_ids("x")
        with pytest.raises(requests.HTTPError) as stored:
            sdk.upload_dicom_file(write_instance(tmp_path / "a.dcm"))

    for error in (asked.value, stored.value):
        assert error.response.content == body
        assert "é" in error.response.text


def bad_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "text.dcm").write_text("no DICOM file\n" * 20)
    (folder / "empty.dcm").touch()
    write_instance(folder / "nobody.dcm", patient_id=None)
    write_instance(folder / "wrong.dcm", study_uid="no uid")


def test_one_bad_file_does_not_discard_the_others_results(server, tmp_path, caplog):
    """The older SDK's own integration tests have a bad file in the folder that they upload."""
    uids = [fresh_uid(3) for _ in range(5)]
    study_uid = fresh_uid(1)
    for number, uid in enumerate(uids):
        write_instance(tmp_path / "in" / f"{number}.dcm", study_uid=study_uid, sop_uid=uid)
    bad_files(tmp_path / "in" / "2")
    sdk = DicomClient(server.url)

    with caplog.at_level(logging.WARNING):
        results = sdk.upload_dicom_folder(tmp_path / "in")
        again = sdk.upload_dicom_folder(tmp_path / "in")

    assert stored_in(results) == set(uids)
    assert sum(len(result.failed) + len(result.anonymous_failures) for result in results) == 4
    assert not stored_in(again), "they are there already, which is no error"
    assert "of 9 files 4 were refused" in caplog.text
    assert not any(uid in caplog.text for uid in uids)
    assert len(sdk.download_dicom(tmp_path / "out", study_uid)) == 5
    with pytest.raises(requests.HTTPError, match="of 4 files 4 were refused") as raised:
        sdk.upload_dicom_folder(tmp_path / "in" / "2")
    assert raised.value.response.status_code == 409
    assert sum(len(result.failed) + len(result.anonymous_failures) for result in raised.value.results) == 4


def refuse_what_holds(marker: bytes, status: str = "400 Bad Request"):
    """Refuse a request whole where one of its files holds this, as Orthanc does; else all are stored."""

    def step(conversation: Conversation) -> None:
        body = conversation.read_body()
        if marker in body:
            conversation.send(answer(b"bad file", status=status, content_type=""))
            return
        items = [{SOP: {"vr": "UI", "Value": [uid.decode()]}} for uid in sorted(set(UID.findall(body)))]
        conversation.send(answer(json.dumps({STORED: {"vr": "SQ", "Value": items}}).encode()))

    return step


@pytest.mark.parametrize("status", ["400 Bad Request", "413 Content Too Large"])
def test_one_bad_file_does_not_take_the_others_with_it_where_the_request_is_refused_whole(tmp_path, status):
    uids = [fresh_uid(3) for _ in range(7)]
    for number, uid in enumerate(uids):
        name = "Refused^Alone" if number == 4 else "Test^Patient"
        write_instance(tmp_path / f"{number}.dcm", sop_uid=uid, patient_name=name)

    with ScriptedServer(refuse_what_holds(b"Refused^Alone", status)) as server:
        with pytest.raises(requests.HTTPError) as raised:
            DicomClient(server.url).upload_dicom_folder(tmp_path)
        assert len(server.requests) < 8
        assert not server.errors

    assert raised.value.response.status_code == int(status[:3])
    assert stored_in(raised.value.results) == {*uids} - {uids[4]}


@requires_orthanc
def test_one_bad_file_does_not_take_the_others_with_it_on_orthanc(tmp_path):
    uids = [fresh_uid(3) for _ in range(5)]
    study_uid = fresh_uid(1)
    for number, uid in enumerate(uids):
        write_instance(tmp_path / "in" / f"{number}.dcm", sop_uid=uid, study_uid=study_uid)
    (tmp_path / "in" / "2.text.dcm").write_text("no DICOM file\n" * 20)

    with Orthanc() as orthanc:
        sdk = DicomClient(orthanc.url)
        with pytest.raises(requests.HTTPError) as raised:
            sdk.upload_dicom_folder(tmp_path / "in")
        assert len(sdk.download_dicom(tmp_path / "out", study_uid)) == 5

    assert stored_in(raised.value.results) == set(uids)
    assert raised.value.response.status_code == 400
    assert FAILED in raised.value.response.json()


def test_what_was_answered_before_a_break_is_on_the_error(tmp_path):
    uids = [fresh_uid(3) for _ in range(201)]
    for number, uid in enumerate(uids):
        write_instance(tmp_path / f"{number:03}.dcm", sop_uid=uid)

    with (
        ScriptedServer(refuse_what_holds(b"nothing"), hang_up) as server,
        pytest.raises(requests.ConnectionError) as raised,
    ):
        DicomClient(server.url).upload_dicom_folder(tmp_path)

    assert stored_in(raised.value.results) == set(uids[:200])


def test_file_that_goes_while_the_others_are_sent_is_told_after_them(tmp_path):
    """Of such a request the server sees the beginning only; the others go in another one."""
    uids = [fresh_uid(3) for _ in range(201)]
    for number, uid in enumerate(uids):
        write_instance(tmp_path / f"{number:03}.dcm", sop_uid=uid, rows=128, columns=128)
    take = refuse_what_holds(b"nothing")

    def remove_one_and_take(conversation: Conversation) -> None:
        (tmp_path / "100.dcm").unlink(missing_ok=True)
        take(conversation)

    with (
        ScriptedServer(remove_one_and_take) as server,
        pytest.raises(requests.RequestException, match="1 were not sent") as raised,
    ):
        DicomClient(server.url).upload_dicom_folder(tmp_path)

    assert raised.value.response is None
    assert stored_in(raised.value.results) == {*uids} - {uids[100]}


def test_file_that_is_none_is_told_after_the_others_are_sent(server, tmp_path):
    uid = fresh_uid(3)
    write_instance(tmp_path / "a.dcm", sop_uid=uid)
    (tmp_path / "b.dcm").symlink_to(tmp_path / "a.dcm")
    os.mkfifo(tmp_path / "c.dcm")  # is no file, and so not one of the folder's

    with pytest.raises(requests.RequestException, match="1 were not sent") as raised:
        DicomClient(server.url).upload_dicom_folder(tmp_path)

    assert stored_in(raised.value.results) == {uid}


def test_file_that_is_not_whole_is_not_sent_and_is_told_after_the_others(server, tmp_path):
    """What the daemon would reject the server would store as it is, and the rest of the image could never follow."""
    uids = [fresh_uid(3) for _ in range(3)]
    for number, uid in enumerate(uids):
        write_instance(tmp_path / f"{number}.dcm", sop_uid=uid)
    cut = tmp_path / "1.dcm"
    os.truncate(cut, cut.stat().st_size - 100)
    sdk = DicomClient(server.url)

    for upload, asked in ((sdk.upload_dicom_folder, tmp_path), (sdk.upload_dicom_file, cut)):
        with pytest.raises(requests.RequestException, match=r"1 were not sent \(the file ends before") as raised:
            upload(asked)
        assert raised.value.response is None
        assert stored_in(raised.value.results) == ({*uids} - {uids[1]} if asked is tmp_path else set())


def test_what_is_not_there_is_404_for_a_deletion_and_a_download(server, tmp_path):
    sdk = DicomClient(server.url)
    study_uid = fresh_uid(1)

    for ask in (lambda: sdk.delete_dicom(study_uid), lambda: sdk.download_dicom(tmp_path, study_uid)):
        with pytest.raises(requests.HTTPError) as raised:
            ask()
        assert raised.value.response.status_code == 404
        assert isinstance(raised.value, NotFound)
    assert sdk.delete_dicom_file(study_uid) is False
    assert not list(tmp_path.rglob("*.dcm"))


def test_interface_is_there_to_be_implemented_by_others(server):
    assert isinstance(DicomClient(server.url), DicomClientInterface)
    with pytest.raises(TypeError, match="abstract"):
        DicomClientInterface(server.url, None)
    asked = {"upload_dicom_folder", "upload_dicom_file", "delete_dicom", "download_dicom", "get_patient_study_ids"}
    assert asked < DicomClientInterface.__abstractmethods__


def jwt(expires_at: float) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": expires_at}).encode()).decode().rstrip("=")
    return f"e30.{payload}.sig"


def test_token_cache_says_when_it_needs_another_token_and_can_be_made_to_fetch_it():
    tokens = iter([jwt(time.time() + 5), jwt(time.time() + 3600), jwt(time.time() + 3601), None, ""])
    cache = TokenCache(lambda: next(tokens))

    assert cache.should_refresh()
    cache.refresh()
    assert cache.should_refresh(), "it ends in five seconds"
    second = cache.get_token()
    assert not cache.should_refresh()
    cache.refresh()
    assert cache.get_token() != second
    for _ in range(2):
        with pytest.raises(TokenRefreshError):
            cache.refresh()


def test_anything_that_gives_a_token_is_a_token_cache():
    class Own:
        def get_token(self) -> str:
            return "own-token"

    with ScriptedServer(answer(b"[]")) as server:
        assert DicomClient(server.url, Own()).get_patient_study_ids("P1") == []

    assert server.requests[0].headers["authorization"] == "Bearer own-token"
