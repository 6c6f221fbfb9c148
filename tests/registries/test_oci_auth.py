"""Credentials: basic with the real registry, bearer tokens with one that asks for them, and whom none of them may reach."""

from __future__ import annotations

import base64
import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from bitward.registries.oci_auth import TokenDesk, origin_of, read_challenges
from bitward.registries.oci_client import Repository
from bitward.registries.oci_credentials import Credentials, credentials_of
from bitward.registries.oci_pull import PullRequest, pull
from bitward.registries.oci_reference import parse_reference
from bitward_agent.errors import InputError, SourceError
from bitward_formats.oci import Descriptor, digest_of_bytes
from lost_blocks import HASTE
from registries.docker_registry import Answer, DockerRegistry, ReferrersProxy, docker_registry, proxied
from registries.in_process import bitward

pytest.importorskip("httpx", reason="the extra 'remote' is not installed")

SECRET = "s3cr3t-Pa55"
HTPASSWD = "tester:$2b$04$K.6YKVClUH5k8fwlP4aKQ.mAJ4uiPANIN/gvOWhF3Zyb0xR7gpZUW\n"
"""bcrypt of the secret, as ``htpasswd -B`` writes it."""
BASIC = "Basic " + base64.b64encode(f"tester:{SECRET}".encode()).decode()
TOKEN = "t0ken-of-the-desk"


@pytest.fixture(autouse=True)
def docker_config(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the tester's own configuration."""
    folder = tmp_path_factory.mktemp("docker")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder / "config.json"


def log_in(config: Path, host: str, password: str = SECRET, **more: Any) -> None:
    """What ``docker login`` leaves."""
    packed = base64.b64encode(f"tester:{password}".encode()).decode()
    config.write_text(json.dumps({"auths": {host: {"auth": packed, **more}}}))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("open")) as running:
        yield running


# ----------------------------------------------------------------------------------------------------------------- with a registry


def test_basic_with_the_real_registry(tmp_path: Path, small_checkpoint: Path, docker_config: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = f'auth: {{htpasswd: {{realm: "here", path: {tmp_path / "htpasswd"}}}}}'
    with docker_registry(tmp_path / "closed", auth) as closed:
        name = f"{closed.host}/models/mine:v1"
        without = bitward("oci", "push", name, small_checkpoint)
        assert without.code == 3
        assert f"docker login {closed.host}" in without.err
        log_in(docker_config, closed.host, "wr0ng-Pa55")
        wrong = bitward("oci", "push", name, small_checkpoint)
        assert wrong.code == 3
        assert "wr0ng" not in wrong.out + wrong.err
        log_in(docker_config, closed.host)
        pushed = bitward("oci", "push", name, small_checkpoint, "--json")
        assert pushed.code == 0, pushed.err
        pulled = bitward("oci", "pull", name, tmp_path / "out")
        assert (pulled.code, SECRET in pulled.out + pulled.err + pushed.out) == (0, False)
        assert (tmp_path / "out" / small_checkpoint.name).read_bytes() == small_checkpoint.read_bytes()


class TokenServer:
    """Signs tokens that the real registry takes: "Docker Registry v2 authentication using JWT" of the distribution project."""

    def __init__(self, folder: Path) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.x509.oid import NameOID

        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "desk")])
        now = datetime.now(UTC)
        maker = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.key.public_key()).serial_number(1)
        maker = maker.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        made = maker.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(self.key, hashes.SHA256())
        self.certificate = made.public_bytes(serialization.Encoding.DER)
        (folder / "root.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.asked = 0

    def token(self, scope: str) -> str:
        """A token for what is asked, good for a minute."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        kind, name, actions = scope.split(":")
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(self.certificate).decode()]}
        claims = {"iss": "desk", "sub": "tester", "aud": "here", "exp": now + 60, "nbf": now - 60, "iat": now, "jti": str(now)}
        access = [{"type": kind, "name": name, "actions": actions.split(",")}]
        parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in (header, {**claims, "access": access})]
        signature = self.key.sign(b".".join(parts), padding.PKCS1v15(), hashes.SHA256())
        return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        if headers.get("authorization") != BASIC:
            return 401, {}, b"{}"
        self.asked += 1
        return 200, {}, json.dumps({"token": self.token(parse_qs(urlsplit(path).query)["scope"][0])}).encode()


def test_bearer_with_the_real_registry(tmp_path: Path, small_checkpoint: Path, docker_config: Path) -> None:
    """It demands a token for each repository and action, and checks its signature."""
    pytest.importorskip("cryptography", reason="the extra 'sign' is not installed")
    server = TokenServer(tmp_path)
    with proxied("127.0.0.1:1", answer=server.answer) as desk:
        auth = f"auth: {{token: {{realm: 'http://{desk.host}/token', service: here, issuer: desk, rootcertbundle: {tmp_path}/root.pem}}}}"
        with docker_registry(tmp_path / "closed", auth) as closed:
            name = f"{closed.host}/models/mine:v1"
            assert bitward("oci", "push", name, small_checkpoint).code == 3  # nobody is logged in
            log_in(docker_config, closed.host)
            pushed = bitward("oci", "push", name, small_checkpoint, "--json")
            assert pushed.code == 0, pushed.err
            assert bitward("oci", "pull", name, tmp_path / "out").code == 0
            assert (tmp_path / "out" / small_checkpoint.name).read_bytes() == small_checkpoint.read_bytes()
            assert server.asked >= 2


class Desk:
    """Asks for bearer tokens before it lets anybody through, as the token specification has it; it gives them out as well."""

    def __init__(self, door: ReferrersProxy, *, anonymous: bool = False, lasts: int = 1000) -> None:
        self.door, self.anonymous, self.lasts = door, anonymous, lasts
        self.left = 0
        self.given = 0
        self.asked: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        if path.startswith("/token"):
            self.asked.append((method, parse_qs(urlsplit(path).query), headers))
            if not self.anonymous and headers.get("authorization") != BASIC:
                return 401, {}, b"{}"
            self.given += 1
            self.left = self.lasts
            return 200, {"Content-Type": "application/json"}, json.dumps({"token": f"{TOKEN}-{self.given}"}).encode()
        if headers.get("authorization") == f"Bearer {TOKEN}-{self.given}" and self.left > 0:
            self.left -= 1
            return None
        scope = "repository:models/mine:pull,push"
        said = f'Bearer realm="http://{self.door.host}/token",service="here",scope="{scope}"'
        return 401, {"WWW-Authenticate": said}, b'{"errors": []}'


@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize("lasts", [1000, 1])
def test_bearer_tokens_are_fetched_and_renewed(
    registry: DockerRegistry, tmp_path: Path, docker_config: Path, caplog: pytest.LogCaptureFixture, *, anonymous: bool, lasts: int
) -> None:
    """With ``lasts`` of 1 each token is good for a single request."""
    caplog.set_level(logging.DEBUG)
    data = b"weights" * 10_000
    with proxied(registry.host) as door:
        desk = Desk(door, anonymous=anonymous, lasts=lasts)
        door.meddling.answer = desk.answer
        if not anonymous:
            log_in(docker_config, door.host)
        with Repository(parse_reference(f"{door.host}/models/mine:{lasts}"), HASTE) as repository:
            descriptor = Descriptor("application/octet-stream", digest_of_bytes(data), len(data), {})
            repository.put_blob(descriptor, data)
            assert b"".join(repository.blob(descriptor)) == data
            source = repository.source(descriptor, "x")
            assert source.ways(len(data))
            source.close()
    assert desk.asked[0][1] == {"service": ["here"], "scope": ["repository:models/mine:pull,push"], "client_id": ["bitward"]}
    assert all(("authorization" in headers) is not anonymous for _, _, headers in desk.asked)
    assert (desk.given > 2) is (lasts == 1)
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text
    assert "Basic" not in caplog.text


def test_an_identity_token_is_exchanged(registry: DockerRegistry, docker_config: Path) -> None:
    """OAuth2: by POST, in the body, never in a URL."""
    with proxied(registry.host) as door:
        desk = Desk(door, anonymous=True)
        door.meddling.answer = desk.answer
        docker_config.write_text(json.dumps({"auths": {door.host: {"identitytoken": SECRET}}}))
        with Repository(parse_reference(f"{door.host}/models/mine"), HASTE) as repository, pytest.raises(SourceError, match="not in the"):
            repository.manifest("nothing")
        ((method, query, headers),) = desk.asked
        assert (method, query, "authorization" in headers) == ("POST", {}, False)
        assert SECRET not in "".join(seen.path for seen in door.seen)


# ------------------------------------------------------------------------------------------------------------ whom they may not reach


@pytest.fixture
def two_doors() -> Iterator[tuple[ReferrersProxy, ReferrersProxy]]:
    with proxied("127.0.0.1:1") as own, proxied("127.0.0.1:1") as other:
        yield own, other


def gate(door: ReferrersProxy, beyond: dict[str, Answer]) -> None:
    """Basic credentials are wanted for everything."""

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if headers.get("authorization") != BASIC:
            return 401, {"WWW-Authenticate": 'Basic realm="here"'}, b""
        return beyond.get(path.partition("?")[0], (404, {}, b""))

    door.meddling.answer = answer


def test_a_redirect_takes_no_credentials_along(
    two_doors: tuple[ReferrersProxy, ReferrersProxy], tmp_path: Path, docker_config: Path
) -> None:
    """Nor are they given when the other server asks for them, whatever scheme it names."""
    own, other = two_doors
    data = b"weights" * 10_000
    layer = {"mediaType": "application/octet-stream", "digest": digest_of_bytes(data), "size": len(data)}
    config = {"mediaType": "application/json", "digest": digest_of_bytes(b"{}"), "size": 2}
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode()
    there = {"Location": f"http://{other.host}/elsewhere?signature={SECRET}"}
    gate(own, {"/v2/a/b/manifests/v1": (200, {}, manifest), f"/v2/a/b/blobs/{layer['digest']}": (307, there, b"")})
    log_in(docker_config, own.host)
    other.meddling.answer = lambda method, path, headers: (200, {}, data)
    report = pull(f"{own.host}/a/b:v1", str(tmp_path / "out"), PullRequest(HASTE))
    assert report.exit_code == 0
    assert (tmp_path / "out" / f"sha256-{layer['digest'][7:]}").read_bytes() == data
    assert any(seen.headers.get("authorization") == BASIC for seen in own.seen)
    assert other.seen
    assert all("authorization" not in seen.headers for seen in other.seen)
    for said in ('Basic realm="give"', f'Bearer realm="http://{other.host}/token"'):
        other.seen.clear()
        other.meddling.answer = lambda method, path, headers, said=said: (401, {"WWW-Authenticate": said}, b"")
        report = pull(f"{own.host}/a/b:v1", str(tmp_path / "again"), PullRequest(HASTE))
        assert report.exit_code == 3
        assert SECRET not in repr(report)
        assert {seen.path.partition("?")[0] for seen in other.seen} == {"/elsewhere"}
        assert all("authorization" not in seen.headers for seen in other.seen)


def test_an_upload_elsewhere_takes_no_credentials_along(two_doors: tuple[ReferrersProxy, ReferrersProxy], docker_config: Path) -> None:
    own, other = two_doors
    gate(own, {"/v2/a/b/blobs/uploads/": (202, {"Location": f"http://{other.host}/put?x=1"}, b"")})
    other.meddling.answer = lambda method, path, headers: (201, {}, b"")
    log_in(docker_config, own.host)
    data = b"weights"
    with Repository(parse_reference(f"{own.host}/a/b:v1"), HASTE) as repository:
        assert repository.put_blob(Descriptor("", digest_of_bytes(data), len(data), {}), data)
    (seen,) = other.seen
    assert (seen.method, "authorization" in seen.headers) == ("PUT", False)
    assert seen.path == f"/put?x=1&digest={digest_of_bytes(data)}"


def test_a_token_server_without_tls_gets_nothing_of_a_registry_with_tls(two_doors: tuple[ReferrersProxy, ReferrersProxy]) -> None:
    _, other = two_doors
    desk = TokenDesk(parse_reference("registry.example.org/a/b:v1"), Credentials("tester", SECRET), HASTE)
    with pytest.raises(SourceError, match="plain HTTP") as caught:
        desk.answer([f'Bearer realm="http://{other.host}/token",service="x"'])
    assert SECRET not in str(caught.value)
    assert not other.seen


def test_a_token_server_that_redirects_gets_no_further(two_doors: tuple[ReferrersProxy, ReferrersProxy]) -> None:
    """A 307 would send an identity token in a body to whom it names."""
    own, other = two_doors
    own.meddling.answer = lambda method, path, headers: (307, {"Location": f"http://{other.host}/"}, b"")
    desk = TokenDesk(parse_reference(f"{own.host}/a/b:v1"), Credentials(identity_token=SECRET), HASTE)
    with pytest.raises(SourceError, match="answers 307"):
        desk.answer([f'Bearer realm="http://{own.host}/token"'])
    assert not other.seen


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a b"}', b'{"token": "a\\nb"}', b'{"token": "\xc3\xa9"}'])
def test_tokens_that_are_none(two_doors: tuple[ReferrersProxy, ReferrersProxy], body: bytes) -> None:
    own, _ = two_doors
    own.meddling.answer = lambda method, path, headers: (200, {}, body)
    desk = TokenDesk(parse_reference(f"{own.host}/a/b:v1"), Credentials(), HASTE)
    with pytest.raises(SourceError, match="gives no token"):
        desk.answer([f'Bearer realm="http://{own.host}/token"'])


def test_an_answer_without_end_from_a_gate_or_a_token_server(two_doors: tuple[ReferrersProxy, ReferrersProxy]) -> None:
    own, _ = two_doors
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{own.host}/token"'}
    own.meddling.answer = lambda method, path, headers: (200, {}, b" ") if "/token" in path else (401, challenge, b" ")
    own.meddling.endless = "/"
    with Repository(parse_reference(f"{own.host}/a/b:v1"), HASTE) as repository, pytest.raises(SourceError, match="more than"):
        repository.manifest("v1")


# ---------------------------------------------------------------------------------------------------------------------- small parts


def test_challenges_are_read_as_rfc_9110_has_them() -> None:
    found = read_challenges(['Basic realm="a \\"b\\"", Bearer realm="https://x/t",service=s,scope="repository:a:pull,push"'])
    assert found == {"basic": {"realm": 'a "b"'}, "bearer": {"realm": "https://x/t", "service": "s", "scope": "repository:a:pull,push"}}
    assert read_challenges(["x" * 100_000]) == {}
    assert read_challenges(["Negotiate"]) == {}


def test_origins_are_compared_with_their_ports() -> None:
    assert origin_of("https://a.example/x") == origin_of("HTTPS://A.example:443/y")
    assert len({origin_of(url) for url in ("http://a", "https://a", "http://a:81", "http://b", "http://a.b")}) == 5
    assert origin_of("http://[") == ("", "", 0)


def test_docker_configurations(docker_config: Path) -> None:
    host = "registry.example.org"
    assert credentials_of(host) == Credentials()
    log_in(docker_config, host)
    assert credentials_of(host).basic == BASIC
    assert credentials_of("other.example.org") == Credentials()
    assert SECRET not in repr(credentials_of(host))
    docker_config.write_text(json.dumps({"auths": {host: {}}, "credsStore": "secretservice"}))
    assert credentials_of(host).helper == "secretservice"
    for text in ("", "[]", "{" * 100_000, json.dumps({"auths": {host: {"auth": f"{SECRET}!"}}})):
        docker_config.write_text(text)
        with pytest.raises(InputError, match="cannot be used") as caught:
            credentials_of(host)
        assert SECRET not in str(caught.value)
    os.remove(docker_config)
    os.mkfifo(docker_config)
    with pytest.raises(InputError, match="cannot be used"):
        credentials_of(host)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("localhost:5000/a", ("http", "localhost:5000", "a", "latest", "")),
        ("127.0.0.1:5000/a/b:v1", ("http", "127.0.0.1:5000", "a/b", "v1", "")),
        ("oci://ghcr.io/a/b-c_d.e:V1.0", ("https", "ghcr.io", "a/b-c_d.e", "V1.0", "")),
        ("[::1]:5000/a", ("http", "[::1]:5000", "a", "latest", "")),
        (f"ghcr.io/a@sha256:{'0' * 64}", ("https", "ghcr.io", "a", "", f"sha256:{'0' * 64}")),
    ],
)
def test_references(text: str, parts: tuple[str, ...]) -> None:
    found = parse_reference(text)
    assert (found.scheme, found.host, found.repository, found.tag, found.digest) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a/b",
        "ghcr.io",
        "ghcr.io/",
        "ghcr.io/A",
        "ghcr.io/a/../b",
        "ghcr.io/a:",
        "ghcr.io/a:b/c",
        "ghcr.io/a@md5:00",
        f"user:{SECRET}@ghcr.io/a",
        f"https://user:{SECRET}@ghcr.io/a",
        "ghcr.io/a?x=y",
        "ghcr.io/" + "a" * 300,
        "ghcr.io/a:" + "t" * 129,
    ],
)
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_reference(text)
    assert SECRET not in str(caught.value)
