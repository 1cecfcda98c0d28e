"""Tokens: where they come from, when they are fetched anew, and that they go nowhere but to the configured host."""

from __future__ import annotations

import base64
import json
import logging
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest

from ingestd.dicomweb import (
    AzureAuth,
    BasicAuth,
    BearerAuth,
    ConnectionInfo,
    DicomWebClient,
    MisconfiguredServer,
    NotAuthorized,
    OAuth2Auth,
    Timeouts,
    Tls,
    TokenError,
    Unavailable,
)
from ingestd.dicomweb.sdk import DicomClient, TokenCache, expiry_of, make_get_token_func
from tests.http_server import Conversation, ScriptedServer, answer, certificate, server_context

EMPTY = answer(b"[]")
DENIED = answer(b"", status="401 Unauthorized", content_type="")
NOTHING_FOUND = answer(b"", status="204 No Content", content_type="")


def token_answer(token: str, lifetime: int = 3600) -> bytes:
    body = json.dumps({"access_token": token, "expires_in": lifetime, "token_type": "Bearer"}).encode()
    return answer(body, content_type="application/json")


def sent(server: ScriptedServer) -> list[str | None]:
    return [request.headers.get("authorization") for request in server.requests]


def test_no_authentication_sends_no_header():
    with ScriptedServer(EMPTY) as server, DicomWebClient(server.url) as client:
        client.prepare()
        client.search_studies()

    assert sent(server) == [None]


def test_token_file_is_read_again_when_it_changes(tmp_path):
    file = tmp_path / "token"
    file.write_text("first\n")

    with ScriptedServer(EMPTY) as server, DicomWebClient(server.url, auth=BearerAuth(file=file)) as client:
        client.search_studies()
        file.write_text("Bearer second, which is longer")
        client.search_studies()

    assert sent(server) == ["Bearer first", "Bearer second, which is longer"]


def test_token_from_the_environment(monkeypatch):
    monkeypatch.setenv("DICOM_TOKEN", "pasted")

    with ScriptedServer(EMPTY) as server, DicomWebClient(server.url, auth=BearerAuth(env="DICOM_TOKEN")) as client:
        client.search_studies()

    assert sent(server) == ["Bearer pasted"]


def test_refused_token_is_tried_again_only_if_the_file_holds_another_one(tmp_path):
    file = tmp_path / "token"
    file.write_text("old")
    auth = BearerAuth(file=file)

    def deny_and_rotate(conversation: Conversation) -> None:
        file.write_text("new!")
        conversation.send(DENIED)

    with ScriptedServer(deny_and_rotate, EMPTY, DENIED) as server, DicomWebClient(server.url, auth=auth) as client:
        client.search_studies()
        with pytest.raises(NotAuthorized) as raised:
            client.search_studies()

    assert sent(server) == ["Bearer old", "Bearer new!", "Bearer new!"]
    assert "audience" in str(raised.value)


def test_missing_role_is_told_by_name():
    with (
        ScriptedServer(answer(b"Authorization failed.", status="403 Forbidden", content_type="text/plain")) as server,
        DicomWebClient(server.url) as client,
        pytest.raises(NotAuthorized, match="DICOM Data Owner"),
    ):
        client.search_studies()


@pytest.mark.parametrize("content", ["", "two\nlines", "nul\0", "ümlaut"])
def test_secret_that_is_none_is_a_token_error_before_anything_is_sent(tmp_path, content):
    file = tmp_path / "token"
    file.write_text(content)

    with ScriptedServer(EMPTY) as server, DicomWebClient(server.url, auth=BearerAuth(file=file)) as client:
        with pytest.raises(TokenError) as raised:
            client.prepare()
        with pytest.raises(TokenError):
            client.search_studies()

    assert server.requests == []
    assert raised.value.nothing_was_stored
    assert content == "" or content not in str(raised.value)


def test_missing_token_file_is_a_token_error(tmp_path):
    with pytest.raises(TokenError, match="No such file"):
        BearerAuth(file=tmp_path / "nowhere").header()


def test_basic_sends_user_and_password_as_utf8(tmp_path, monkeypatch):
    (tmp_path / "password").write_text("secret\n")
    monkeypatch.setenv("DICOM_PASSWORD", "other")

    assert BasicAuth("wer", password_file=tmp_path / "password").header() == (
        "Basic " + base64.b64encode(b"wer:secret").decode()
    )
    assert BasicAuth("wer", password_env="DICOM_PASSWORD").header() == (
        "Basic " + base64.b64encode(b"wer:other").decode()
    )
    with pytest.raises(ValueError, match="colon"):
        BasicAuth("a:b", password_env="X")


def test_redirect_is_not_followed_and_gets_no_token(tmp_path):
    (tmp_path / "token").write_text("precious")

    with ScriptedServer(EMPTY) as thief:
        moved = answer(b"", status="302 Found", headers={"Location": thief.url + "/studies"})
        auth = BearerAuth(file=tmp_path / "token")
        with (
            ScriptedServer(moved) as server,
            DicomWebClient(server.url, auth=auth) as client,
            pytest.raises(MisconfiguredServer, match="redirects are not followed"),
        ):
            client.search_studies()

    assert thief.requests == []


def test_tokens_reach_no_log_and_no_repr(tmp_path, caplog):
    (tmp_path / "token").write_text("precious-canary")
    caplog.set_level(logging.DEBUG)
    auth = BearerAuth(file=tmp_path / "token")

    with (
        ScriptedServer(DENIED) as server,
        DicomWebClient(server.url, auth=auth) as client,
        pytest.raises(NotAuthorized) as raised,
    ):
        client.search_studies()

    assert "precious-canary" not in caplog.text + repr(auth) + repr(client) + str(raised.value) + repr(
        vars(raised.value)
    )


def test_client_credentials_are_fetched_once_and_kept(tmp_path):
    (tmp_path / "secret").write_text("s3cret&=")
    with ScriptedServer(token_answer("tok")) as tokens, ScriptedServer(EMPTY) as server:
        auth = OAuth2Auth(
            tokens.url + "/token", "me", secret_file=tmp_path / "secret", scope="a/.default", more={"audience": "x"}
        )
        with DicomWebClient(server.url, auth=auth) as client:
            client.prepare()
            client.search_studies()
            client.search_studies()

    (request,) = tokens.requests
    assert parse_qs(request.body.decode()) == {
        "grant_type": ["client_credentials"],
        "client_id": ["me"],
        "client_secret": ["s3cret&="],
        "scope": ["a/.default"],
        "audience": ["x"],
    }
    assert request.target == "/v2/token"
    assert sent(server) == ["Bearer tok"] * 2


def test_client_credentials_may_go_in_the_header():
    with ScriptedServer(token_answer("tok")) as tokens:
        OAuth2Auth(tokens.url, "me:you", secret="p w", basic=True).header()

    (request,) = tokens.requests
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"me%3Ayou:p+w").decode()
    assert b"client_secret" not in request.body


def test_token_near_its_end_is_refreshed_ahead_and_kept_if_that_fails():
    broken = answer(b"", status="500 Internal Server Error")
    with ScriptedServer(token_answer("first", 100), broken, token_answer("second", 3600)) as tokens:
        auth = OAuth2Auth(tokens.url, "me", secret="x")
        assert auth.header() == "Bearer first"
        assert auth.header() == "Bearer first", "a short-lived token is not fetched anew for each request"
        auth._not_before = 0.0  # the pause between two tries is over
        assert auth.header() == "Bearer first", "the identity server is down, the old token is still good"
        auth._not_before = 0.0
        assert auth.header() == "Bearer second"

    assert len(tokens.requests) == 3


def test_expired_token_with_no_new_one_is_a_token_error():
    broken = answer(b'{"error": "invalid_client", "error_description": "canary"}', status="400 Bad Request")
    with ScriptedServer(token_answer("first", 5), broken) as tokens:
        auth = OAuth2Auth(tokens.url, "me", secret="x")
        auth.header()
        with pytest.raises(TokenError, match="400 invalid_client") as raised:
            auth.header()

    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("said", ["smith", "john_smith_1970", "Invalid_Client", 3, ["invalid_client"]])
def test_no_word_of_a_token_endpoint_is_taken_over_but_those_of_the_standard(said):
    """It went into the log, where a word without dots passes for one of ours."""
    reply = answer(json.dumps({"error": said}).encode(), status="400 Bad Request")
    with ScriptedServer(reply) as tokens, pytest.raises(TokenError, match=r"it answered 400$"):
        OAuth2Auth(tokens.url, "me", secret="x").header()


@pytest.mark.parametrize("reply", [answer(b"{}"), answer(b"[]"), answer(b"<html>"), answer(b'{"access_token": 3}')])
def test_token_answer_without_a_token_is_a_token_error(reply):
    with ScriptedServer(reply) as tokens, pytest.raises(TokenError):
        OAuth2Auth(tokens.url, "me", secret="x").header()


def test_refused_token_is_thrown_away_and_fetched_once_more():
    """A 401 decides, not the cache: one forced refresh, and if that is refused as well, an error."""
    with (
        ScriptedServer(token_answer("a"), token_answer("b"), token_answer("c")) as tokens,
        ScriptedServer(DENIED, EMPTY, DENIED, DENIED) as server,
        DicomWebClient(server.url, auth=OAuth2Auth(tokens.url, "me", secret="x")) as client,
    ):
        client.search_studies()
        with pytest.raises(NotAuthorized):
            client.search_studies()

    assert sent(server) == ["Bearer a", "Bearer b", "Bearer b", "Bearer c"]
    assert len(tokens.requests) == 3


def test_refused_store_is_sent_again_whole_with_the_new_token(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    stored = answer(b'{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]}}')

    with (
        ScriptedServer(token_answer("a"), token_answer("b")) as tokens,
        ScriptedServer(DENIED, stored) as server,
        DicomWebClient(server.url, auth=OAuth2Auth(tokens.url, "me", secret="x")) as client,
    ):
        result = client.store([path])

    assert result.is_all_stored
    assert server.requests[0].body == server.requests[1].body
    assert len(server.requests[1].body) == int(server.requests[1].headers["content-length"])


class _Credential:
    """Stands in for one of azure-identity's, which need Microsoft's servers."""

    def __init__(self, log: list[str], lifetime: float) -> None:
        self.log = log
        self.lifetime = lifetime

    def get_token(self, *scopes: str):
        self.log.append(scopes[0])
        if len(self.log) > 3:
            raise RuntimeError("canary")
        from azure.core.credentials import AccessToken

        return AccessToken(f"azure-{len(self.log)}", int(time.time() + self.lifetime))


def test_azure_credential_is_thrown_away_after_a_401(monkeypatch):
    asked: list[str] = []
    built: list[_Credential] = []

    def build(*_args: object, **options: object) -> _Credential:
        assert options["retry_total"] == 2
        assert (options["connection_timeout"], options["read_timeout"]) == (5, 10)
        built.append(_Credential(asked, 3600))
        return built[-1]

    monkeypatch.setattr("azure.identity.ManagedIdentityCredential", build)
    auth = AzureAuth("managed_identity")

    with ScriptedServer(EMPTY, DENIED, EMPTY) as server, DicomWebClient(server.url, auth=auth) as client:
        client.search_studies()
        client.search_studies()

    assert sent(server) == ["Bearer azure-1", "Bearer azure-1", "Bearer azure-2"]
    assert asked == ["https://dicom.healthcareapis.azure.com/.default"] * 2
    assert len(built) == 2, "its cache would have given the refused token again"


@pytest.mark.parametrize(
    "kind, options, name",
    [
        ("default", {}, "DefaultAzureCredential"),
        ("managed_identity", {"client_id": "c"}, "ManagedIdentityCredential"),
        ("secret", {"tenant_id": "t", "client_id": "c", "secret_env": "AZ_SECRET"}, "ClientSecretCredential"),
        ("certificate", {"tenant_id": "t", "client_id": "c", "certificate_file": "cert"}, "CertificateCredential"),
        ("cli", {}, "AzureCliCredential"),
        ("workload", {"tenant_id": "t", "client_id": "c", "token_file": "tok"}, "WorkloadIdentityCredential"),
    ],
)
def test_each_kind_of_azure_credential_is_built_by_its_own_class(tmp_path, monkeypatch, kind, options, name):
    """azure-identity's own classes, as far as they go without Microsoft's servers."""
    monkeypatch.setenv("AZ_SECRET", "s")
    if "certificate_file" in options:
        options = {**options, "certificate_file": certificate(tmp_path, "client")[0]}
    if options.pop("token_file", None):
        (tmp_path / "federated").write_text("x")
        monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "federated"))

    credential = AzureAuth(kind, **options)._build()

    assert type(credential).__name__ == name
    credential.close()


def test_azure_without_a_token_names_kind_and_scope_and_nothing_else(monkeypatch):
    def build(*_args: object, **_options: object) -> _Credential:
        return _Credential(["x"] * 5, 0)

    monkeypatch.setattr("azure.identity.AzureCliCredential", build)

    with pytest.raises(TokenError, match=r"azure-identity \(cli\).*RuntimeError") as raised:
        AzureAuth("cli").header()

    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("kind", ["secret", "certificate", "nonsense"])
def test_azure_credential_that_lacks_something_is_refused_at_once(kind):
    with pytest.raises(ValueError, match="Azure credential"):
        AzureAuth(kind)


INFO = {"authority": "https://login.example/tenant", "client_id": "c", "client_secret": "s", "oauth_resource": "r"}


@pytest.mark.parametrize("text", [json.dumps(INFO), repr(INFO), f"  {INFO!r}\n"])
def test_connection_info_is_read_as_json_or_as_the_literal_it_was(text):
    info = ConnectionInfo.parse(text)

    assert info.token_url == "https://login.example/tenant/oauth2/v2.0/token"
    assert info.scope == "r/.default"
    assert "client_secret" not in repr(info)


@pytest.mark.parametrize(
    "resource, scope",
    [
        ("api://app-id", "api://app-id/.default"),
        ("https://dicom.healthcareapis.azure.com/", "https://dicom.healthcareapis.azure.com/.default"),
        ("https://dicom.healthcareapis.azure.com/.default", "https://dicom.healthcareapis.azure.com/.default"),
    ],
)
def test_oauth_resource_becomes_a_scope(resource, scope):
    assert ConnectionInfo.parse(json.dumps(INFO | {"oauth_resource": resource})).scope == scope


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "__import__('os').system('true')", "{'authority': open('/etc/passwd').read()}", "{}", "(" * 500],
)
def test_connection_info_is_never_evaluated_and_never_quoted(text, monkeypatch):
    monkeypatch.setenv("AUTH_CONNECTION_INFO", text)

    with pytest.raises(ValueError, match="AUTH_CONNECTION_INFO") as raised:
        ConnectionInfo.from_environment()

    assert not text or text not in str(raised.value)


def jwt(expires_at: float) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": expires_at}).encode()).decode().rstrip("=")
    return f"e30.{payload}.sig"


def test_token_cache_asks_again_ten_seconds_before_the_end():
    tokens = [jwt(time.time() + 5), jwt(time.time() + 3600), "never used"]
    asked = iter(tokens)
    cache = TokenCache(lambda: next(asked))

    assert cache.get_token() == tokens[0]
    assert [cache.get_token() for _ in range(3)] == [tokens[1]] * 3
    assert expiry_of("no jwt") == 0.0


def test_sdk_takes_its_connection_info_from_the_environment(monkeypatch):
    with (
        ScriptedServer(token_answer(jwt(time.time() + 3600))) as tokens,
        ScriptedServer(NOTHING_FOUND) as server,
    ):
        monkeypatch.setenv("AUTH_CONNECTION_INFO", repr(INFO | {"authority": tokens.url}))
        client = DicomClient(server.url, TokenCache(make_get_token_func()))
        assert client.get_patient_study_ids("P 1") == []
        assert client.get_patient_study_ids("P 1") == []

    assert len(tokens.requests) == 1
    assert tokens.requests[0].target == "/v2/oauth2/v2.0/token"
    assert "PatientID=P+1" in server.requests[0].target


def test_private_authority_is_trusted_only_when_told(tmp_path):
    cert = certificate(tmp_path, "server")

    with ScriptedServer(EMPTY, tls=server_context(cert)) as server:
        with DicomWebClient(server.url, tls=Tls(ca=cert[0])) as client:
            assert len(client.search_studies()) == 0
        with DicomWebClient(server.url) as client, pytest.raises(MisconfiguredServer, match="certificate") as raised:
            client.search_studies()

    assert raised.value.nothing_was_stored


def test_certificate_of_another_host_is_refused(tmp_path):
    cert = certificate(tmp_path, "server", san="DNS:elsewhere.example")

    with (
        ScriptedServer(EMPTY, tls=server_context(cert)) as server,
        DicomWebClient(server.url, tls=Tls(ca=cert[0])) as client,
        pytest.raises(MisconfiguredServer, match="certificate"),
    ):
        client.search_studies()


def test_client_certificate_is_shown_to_a_server_that_asks(tmp_path):
    authority = certificate(tmp_path, "authority", san="DNS:authority")
    cert = certificate(tmp_path, "server")
    ours = certificate(tmp_path, "client", san="DNS:client", ca=authority)

    with ScriptedServer(EMPTY, tls=server_context(cert, client_ca=authority[0])) as server:
        with DicomWebClient(server.url, tls=Tls(ca=cert[0], client_certificate=ours[0])) as client:
            assert len(client.search_studies()) == 0
        tls = Tls(ca=cert[0], client_certificate=ours[0], client_key=ours[1])
        with DicomWebClient(server.url, tls=tls) as client:
            assert len(client.search_studies()) == 0
        # The server's alert may be lost in the reset that follows it.
        with (
            DicomWebClient(server.url, tls=Tls(ca=cert[0])) as client,
            pytest.raises((MisconfiguredServer, Unavailable)),
        ):
            client.search_studies()
    with pytest.raises(ValueError, match="needs its certificate"):
        Tls(client_key=ours[1])


def test_https_to_a_plain_port_is_a_configuration_fault():
    def answer_in_plain_text() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65_536)
            sock.sendall(DENIED)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_in_plain_text)
        thread.start()
        with (
            DicomWebClient(f"https://127.0.0.1:{listener.getsockname()[1]}/v2") as client,
            pytest.raises(MisconfiguredServer, match="wrong version number"),
        ):
            client.search_studies()
        thread.join()


def test_new_connection_reads_the_authorities_again_only_once_a_file_of_theirs_is_another(tmp_path, monkeypatch):
    """A context was made for each connection: 18 ms of CPU with the public authorities, after each idle half minute."""
    read = []
    load = ssl.SSLContext.load_verify_locations

    def counted(context: ssl.SSLContext, *files: str | None) -> None:
        read.append(files)
        load(context, *files)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", counted)
    cert, other = certificate(tmp_path, "server"), certificate(tmp_path, "other")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(cert[0].read_bytes())

    with (
        ScriptedServer(EMPTY, tls=server_context(cert)) as server,
        DicomWebClient(server.url, tls=Tls(ca=trusted), timeouts=Timeouts(idle=timedelta(0))) as client,
    ):
        for _ in range(3):
            client.search_studies()
        assert (server.connections, len(read)) == (3, 1)

        trusted.write_bytes(other[0].read_bytes())
        with pytest.raises(MisconfiguredServer, match="not trusted"):
            client.search_studies()

        trusted.write_bytes(cert[0].read_bytes())
        client.search_studies()


def test_renewed_client_certificate_is_shown_by_the_next_connection(tmp_path):
    authority = certificate(tmp_path, "authority", san="DNS:authority")
    cert = certificate(tmp_path, "server")
    ours = certificate(tmp_path, "client", san="DNS:client", ca=authority)
    strange = certificate(tmp_path, "strange", san="DNS:client")
    shown = tmp_path / "shown.pem"
    shown.write_bytes(ours[0].read_bytes())

    with (
        ScriptedServer(EMPTY, tls=server_context(cert, client_ca=authority[0])) as server,
        DicomWebClient(
            server.url,
            tls=Tls(ca=cert[0], client_certificate=shown),
            timeouts=Timeouts(idle=timedelta(0)),
        ) as client,
    ):
        client.search_studies()
        shown.write_bytes(strange[0].read_bytes())
        # The server's alert may be lost in the reset that follows it.
        with pytest.raises((MisconfiguredServer, Unavailable)):
            client.search_studies()
        shown.write_bytes(ours[0].read_bytes())
        client.search_studies()


def test_missing_certificate_files_are_told_before_anything_is_sent(tmp_path):
    client = DicomWebClient("https://127.0.0.1:9/v2", tls=Tls(ca=tmp_path / "nowhere"))

    with pytest.raises(MisconfiguredServer, match="not there"):
        client.search_studies()


def test_store_over_tls_streams_and_reports_like_any_other(tmp_path):
    cert = certificate(tmp_path, "server")
    path = tmp_path / "large"
    path.write_bytes(b"z" * 3_000_000)
    stored = answer(b'{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]}}')

    with (
        ScriptedServer(stored, tls=server_context(cert)) as server,
        DicomWebClient(server.url, tls=Tls(ca=cert[0])) as client,
    ):
        result = client.store([path])

    assert result.is_all_stored
    assert result.body_bytes_left == len(server.requests[0].body)


@pytest.mark.parametrize(
    "url",
    ["ftp://host/v2", "https:///v2", "https://me:pw@host/v2", "https://host/v2?x=1", "https://host/v2#x", "host/v2"],
)
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(ValueError, match="URL"):
        DicomWebClient(url)


def test_date_header_is_aware_utc():
    reply = answer(b"[]", headers={"Date": "Sat, 21 Nov 2026 10:00:00 GMT"})
    with ScriptedServer(reply) as server, DicomWebClient(server.url) as client:
        page = client.search_studies()

    assert page.server_date == datetime(2026, 11, 21, 10, tzinfo=UTC)
