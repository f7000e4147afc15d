"""Deliveries: from the end of a job, through the real store, to a real receiver."""

import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from standardwebhooks import WebhookVerificationError

from app.jobs.record import JobStatus, new_job_id
from app.webhooks.guard import Guard
from app.webhooks.record import DeliveryStatus, delivery_id
from app.webhooks.repository import DeliveryNotFound
from tests.webhooks.conftest import RESULT, Bench
from tests.webhooks.receiver import Receiver, redirect
from worker.courier import WAITS_S
from worker.sender import Sender


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED])
def test_the_end_of_a_job_is_told_and_signed(bench: Bench, receiver: Receiver, status: JobStatus) -> None:
    delivery_id = bench.end_job(receiver.url + "?key=1", status)
    assert bench.courier().look() == 1
    [got] = receiver.received
    message = got.verified(bench.secret())
    job_id = bench.delivery(delivery_id).job_id
    assert (message["type"], message["data"]["id"], message["data"]["status"]) == (f"job.{status}", job_id, status)
    assert message["data"]["conclusion"] == (RESULT["conclusion"] if status is JobStatus.SUCCEEDED else None)
    assert message["data"]["error"] == ("training_diverged" if status is JobStatus.FAILED else None)
    assert message["data"]["urls"]["job"] == f"/v1/jobs/{job_id}"
    assert got.path == "/hook?key=1"
    assert got.headers["webhook-id"] == delivery_id
    with pytest.raises(WebhookVerificationError):
        got.verified("whsec_" + "A" * 44)
    delivery = bench.delivery(delivery_id)
    assert (delivery.status, delivery.next_attempt_at) == (DeliveryStatus.DELIVERED, None)
    [attempt] = delivery.attempts
    assert (attempt.status, attempt.error) == (204, None)
    assert delivery.shown_url == f"{receiver.url}?…"


@pytest.mark.parametrize(("events", "told"), [
    (("succeeded",), {"succeeded"}), (("failed", "canceled"), {"failed", "canceled"}),
    (("completed", "failed"), {"succeeded", "failed", "canceled"}),
])  # fmt: skip
def test_only_what_was_asked_for_is_told(
    bench: Bench, receiver: Receiver, events: tuple[str, ...], told: set[str]
) -> None:
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED):
        bench.end_job(receiver.url, status, events=events)
    bench.courier().look()
    assert {json.loads(got.body)["data"]["status"] for got in receiver.received} == told


def test_every_way_a_job_ends_is_told_and_nothing_before(bench: Bench) -> None:
    webhook = {
        "url": "sealed",
        "shown": "https://example.com",
        "statuses": {"succeeded": True, "failed": True, "canceled": True},
    }
    jobs, ended = bench.jobs, {}
    for way in (
        "canceled in the queue",
        "canceled, then finished",
        "canceled, then let go",
        "canceled, then died",
        "died",
    ):
        job_id = new_job_id()
        jobs.create(
            job_id, "local", {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}, "webhook": webhook}
        )
        fence = None if way == "canceled in the queue" else jobs.claim(job_id, "owner", 60, 1)
        if fence is not None:
            jobs.mark_running(job_id, fence)
        assert bench.deliveries.tenant(delivery_id(job_id)) is None
        if way != "died":
            jobs.cancel(job_id)
        match way, fence:
            case "canceled, then finished", int():
                jobs.finish(job_id, fence, JobStatus.SUCCEEDED, RESULT)
            case "canceled, then let go", int():
                jobs.release(job_id, fence, attempt_counts=True)
            case (("canceled, then died" | "died"), int()):
                jobs.heartbeat(job_id, fence, 0.001)
                time.sleep(0.01)
                assert jobs.claim(job_id, "another", 60, 1) is None
        ended[way] = bench.delivery(delivery_id(job_id))
    assert {way: delivery.event for way, delivery in ended.items()} == {
        way: "job.failed" if way == "died" else "job.canceled" for way in ended
    }
    assert json.loads(ended["died"].body())["data"]["error"] == "worker_died"
    assert json.loads(ended["canceled, then finished"].body())["data"]["conclusion"] is None


def test_a_receiver_with_a_fault_is_asked_again_with_the_same_message(bench: Bench, receiver: Receiver) -> None:
    receiver.answers = [500, 503, 200]
    delivery_id = bench.end_job(receiver.url)
    assert bench.courier().look() == 3
    assert {(got.headers["webhook-id"], got.body) for got in receiver.received} == {
        (delivery_id, receiver.received[0].body)
    }
    for got in receiver.received:
        got.verified(bench.secret())
    delivery = bench.delivery(delivery_id)
    assert delivery.status is DeliveryStatus.DELIVERED
    assert [(attempt.status, attempt.error) for attempt in delivery.attempts] == [
        (500, "the receiver answered 500"), (503, "the receiver answered 503"), (200, None)
    ]  # fmt: skip


def test_attempts_are_as_far_apart_as_standard_webhooks_says(bench: Bench, receiver: Receiver) -> None:
    receiver.answers = [500]
    delivery_id = bench.end_job(receiver.url)
    before = time.time() * 1000
    assert bench.courier(scale=1).look() == 1  # and the second is not due
    after = bench.delivery(delivery_id).next_attempt_at
    assert after is not None
    assert before + 5000 <= after <= time.time() * 1000 + 5500
    bench.deliveries.redeliver(delivery_id)
    assert bench.courier(scale=0).look() == len(WAITS_S) + 1
    assert bench.delivery(delivery_id).status is DeliveryStatus.FAILED
    assert bench.courier(scale=0).look() == 0


def test_a_receiver_that_is_gone_is_not_asked_again_but_by_hand(bench: Bench, receiver: Receiver) -> None:
    receiver.answers = [410, 204]
    delivery_id = bench.end_job(receiver.url)
    assert bench.courier().look() == 1
    assert bench.delivery(delivery_id).status is DeliveryStatus.FAILED
    bench.deliveries.redeliver(delivery_id)
    assert bench.courier().look() == 1
    assert bench.delivery(delivery_id).status is DeliveryStatus.DELIVERED
    assert receiver.received[0].body == receiver.received[1].body


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_failure_that_says_where_to(bench: Bench, receiver: Receiver, status: int) -> None:
    with Receiver() as inside:
        receiver.answers = [redirect(status, f"{inside.url}?token=s3cret")]
        delivery_id = bench.end_job(receiver.url)
        bench.courier(scale=1).look()
        assert inside.received == []
    [attempt] = bench.delivery(delivery_id).attempts
    assert attempt.status == status
    assert attempt.error == f"the receiver redirects to {inside.url}?…; redirects are not followed"


@pytest.mark.parametrize("location", ["http://[", "", "//u:p@x/y", "\xff" * 4000])
def test_a_redirect_to_nonsense_is_a_failure_too(bench: Bench, receiver: Receiver, location: str) -> None:
    receiver.answers = [redirect(302, location)]
    delivery_id = bench.end_job(receiver.url)
    bench.courier(scale=1).look()
    [attempt] = bench.delivery(delivery_id).attempts
    assert "redirects to" in str(attempt.error)
    assert "u:p" not in str(attempt.error)


def test_a_name_that_moves_to_loopback_is_refused_at_delivery(bench: Bench, receiver: Receiver) -> None:
    """DNS rebinding: public when the job is made, loopback when the delivery is. The name is asked once for each."""
    answers = [["93.184.216.34"], ["127.0.0.1"], ["93.184.216.34", "127.0.0.1"]]
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    url = f"http://rebind.example:{receiver.port}/hook"
    guard = Guard(True, (), resolve)
    assert guard.check(url).addresses == ("93.184.216.34",)
    bench.guard = guard
    delivery_id = bench.end_job(url)
    assert bench.courier(scale=1).look() == 1
    bench.deliveries.redeliver(delivery_id)
    bench.courier(scale=1).look()
    assert len(asked) == 3
    assert receiver.received == []
    for attempt in bench.delivery(delivery_id).attempts:
        assert "rebind.example is at 127.0.0.1, which is no public address" in str(attempt.error)
        assert "url_refused" in str(attempt.error)


def test_the_connection_goes_to_the_address_that_was_checked(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to a proxy, and not to what another look at the name would find: it exists for the given resolver alone."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    bench.guard = Guard(True, ["receiver.invalid"], lambda host, port: ["127.0.0.2", "127.0.0.1"])
    bench.end_job(f"http://receiver.invalid:{receiver.port}/hook")
    bench.courier(scale=1).look()
    [got] = receiver.received
    assert got.headers["Host"] == f"receiver.invalid:{receiver.port}"


def certificate(folder: Path, name: str) -> Path:
    """A certificate that signs itself, with its key, in one PEM file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    return path


def test_https_is_verified_by_the_name_of_the_url(bench: Bench, tmp_path: Path) -> None:
    pem = certificate(tmp_path, "receiver.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    names: list[str | None] = []
    tls.sni_callback = lambda sock, name, context: names.append(name)
    trusting = Sender(ssl.create_default_context(cafile=pem))
    with Receiver(tls) as receiver:
        for name, sender, error in (
            ("receiver.example", trusting, None),
            ("other.example", trusting, "Hostname mismatch"),
            ("receiver.example", None, "self-signed certificate"),  # as every worker is made
        ):
            bench.guard = Guard(False, [name], lambda host, port: ["127.0.0.1"])
            delivery_id = bench.end_job(f"https://{name}:{receiver.port}/hook")
            bench.courier(scale=1, sender=sender).look()
            [attempt] = bench.delivery(delivery_id).attempts
            assert (error or "None") in str(attempt.error)
        assert len(receiver.received) == 1
        assert names == ["receiver.example", "other.example", "receiver.example"]


def hang(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.recv(1)  # until the other end gives up


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A header that never ends, a byte now and then."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize("slow", [hang, drip, drip_body])
def test_a_slow_receiver_is_given_up(bench: Bench, receiver: Receiver, slow: object) -> None:
    receiver.answers = [slow, 204]  # type: ignore[list-item]
    delivery_id = bench.end_job(receiver.url)
    sender = Sender(ssl.create_default_context(), total_s=0.4)
    assert bench.courier(sender=sender).look() == 2
    first, second = bench.delivery(delivery_id).attempts
    assert first.error == "no answer within 0.4 s (to connect, 5 s)"
    assert second.status == 204


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b"x" * 65536)


def test_of_a_long_answer_only_the_beginning_is_read(bench: Bench, receiver: Receiver) -> None:
    receiver.answers = [endless]
    delivery_id = bench.end_job(receiver.url)
    bench.courier(scale=1).look()
    assert bench.delivery(delivery_id).status is DeliveryStatus.DELIVERED


def greet(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 smtp.example ESMTP\r\n")
    handler.close_connection = True


def test_what_is_no_http_and_what_does_not_listen(bench: Bench, receiver: Receiver) -> None:
    receiver.answers = [greet]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in (receiver.url, f"http://127.0.0.1:{port}/"):
        delivery_id = bench.end_job(url)
        bench.courier(scale=1).look()
        [attempt] = bench.delivery(delivery_id).attempts
        assert attempt.status is None
        assert str(attempt.error).startswith("no answer: ")


def test_several_couriers_deliver_each_once(bench: Bench, receiver: Receiver) -> None:
    for _ in range(20):
        bench.end_job(receiver.url)
    threads = [threading.Thread(target=bench.courier().look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [got.headers["webhook-id"] for got in receiver.received]
    assert len(ids) == len(set(ids)) == 20


def test_a_delivery_whose_courier_died_is_taken_by_the_next(bench: Bench, receiver: Receiver) -> None:
    delivery_id = bench.end_job(receiver.url)
    begun, claim = time.monotonic(), bench.deliveries.claim(5)
    assert claim is not None
    courier = bench.courier()
    assert courier.look() == 0  # it is held
    bench.deliveries.redeliver(delivery_id)
    assert courier.look() == 0  # still
    while courier.look() == 0:
        assert time.monotonic() - begun < 30
        time.sleep(0.1)
    [attempt] = bench.delivery(delivery_id).attempts
    assert not bench.deliveries.attempted(claim, attempt, DeliveryStatus.FAILED), "the first one writes nothing more"
    assert bench.delivery(delivery_id).status is DeliveryStatus.DELIVERED


def test_after_a_rotation_both_secrets_verify(bench: Bench, receiver: Receiver) -> None:
    old = bench.secret()
    rotated = bench.secrets.rotate("local")
    assert rotated.current != old
    assert rotated.previous == old
    bench.end_job(receiver.url)
    bench.courier().look()
    for secret in (old, rotated.current):
        receiver.received[0].verified(secret)
    bench.secrets.rotate("local")
    bench.end_job(receiver.url)
    bench.courier().look()
    with pytest.raises(WebhookVerificationError):
        receiver.received[1].verified(old)


def test_tenants_have_their_own_secrets(bench: Bench, receiver: Receiver) -> None:
    bench.end_job(receiver.url, tenant="one")
    bench.courier().look()
    assert bench.secret("one") != bench.secret("two")
    receiver.received[0].verified(bench.secret("one"))


def test_pages_of_deliveries(bench: Bench, receiver: Receiver) -> None:
    receiver.answers = [204, 410]
    ids = []
    for _ in range(5):
        ids.append(bench.end_job(receiver.url))
        time.sleep(0.002)
    bench.end_job(receiver.url, tenant="other")
    newest = ids[::-1]
    seen: list[str] = []
    more = True
    while more:
        page, more = bench.deliveries.page("local", seen[-1] if seen else None, 2, None)
        seen += [delivery.id for delivery in page]
    assert seen == newest
    bench.courier().look()
    failed, more = bench.deliveries.page("local", None, 3, DeliveryStatus.FAILED)
    assert [delivery.id for delivery in failed] == newest[:3]
    assert more
    with pytest.raises(DeliveryNotFound):
        bench.deliveries.page("other", ids[0], 2, None)


def test_the_log_expires_with_the_job(bench: Bench, receiver: Receiver) -> None:
    delivery_id = bench.end_job(receiver.url)
    bench.courier().look()
    redis = bench.deliveries._redis
    for key in (f"known:webhooks:{delivery_id}", f"known:webhooks:{delivery_id}:attempts"):
        assert 29 * 86400 < redis.ttl(key) <= 30 * 86400
    redis.delete(f"known:webhooks:{delivery_id}")
    redis.zadd("known:webhooks:due", {delivery_id: 0})
    assert bench.courier().look() == 0
    assert redis.zcard("known:webhooks:due") == 0


def test_a_secret_that_cannot_be_opened_is_said(bench: Bench, receiver: Receiver, tmp_path: Path) -> None:
    delivery_id = bench.end_job(receiver.url)
    (tmp_path / "secret.key").unlink()
    bench.courier(scale=1).look()
    [attempt] = bench.delivery(delivery_id).attempts
    assert "secret_key_invalid" in str(attempt.error)
    assert bench.delivery(delivery_id).status is DeliveryStatus.PENDING
