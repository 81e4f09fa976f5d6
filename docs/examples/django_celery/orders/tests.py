"""Tasks run in the thread of the test: no worker, no broker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from celery import current_app
from django.contrib.auth.models import User
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import TestCase, TransactionTestCase, skipUnlessDBFeature

from cqrs_sync.testing import record
from cqrs_sync.testing.waiting import eventually
from orders import tasks
from orders.mediator import mediator
from orders.messages import OrderAnnounced, PlaceOrder
from orders.models import Order


def setUpModule() -> None:
    """Run tasks in the thread that calls `delay`."""
    current_app.conf.task_always_eager = True
    current_app.conf.task_eager_propagates = True


class PlacingAnOrder(TestCase):
    def test_the_invoice_is_written_by_a_task(self) -> None:
        with record(mediator) as recorder, self.captureOnCommitCallbacks(execute=True):
            order_id = mediator.send(PlaceOrder("ada", "book"))

        recorder.assert_published(OrderAnnounced(order_id, "ada"))
        assert Order.objects.get(pk=order_id).invoices == 1

    def test_a_task_returns_the_number_of_the_order(self) -> None:
        with record(mediator), self.captureOnCommitCallbacks(execute=True):
            order_id = tasks.place_order.delay("ada", "book").get()

        assert Order.objects.get().pk == order_id


class PlacingAnOrderOverHttp(TestCase):
    KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"

    def setUp(self) -> None:
        self.client.force_login(User.objects.create_user("ada"))

    def post(self, key: str | None, article: str = "book") -> HttpResponse:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.client.post("/orders", {"article": article}, headers=headers)

    def test_a_request_that_is_sent_again_gets_the_same_answer(self) -> None:
        first, again = self.post(self.KEY), self.post(f'"{self.KEY}"')

        assert first.status_code == again.status_code == 201
        assert first.json() == again.json() == {"order": Order.objects.get().pk}

    def test_a_key_is_used_for_one_order(self) -> None:
        codes = [self.post(self.KEY).status_code, self.post(self.KEY, "pen").status_code]

        assert codes == [201, 422]
        assert Order.objects.get().article == "book"

    def test_a_request_without_a_key_is_refused(self) -> None:
        assert [self.post(None).status_code, self.post("short").status_code] == [400, 400]
        assert Order.objects.count() == 0

    def test_users_do_not_see_orders_of_others(self) -> None:
        self.post(self.KEY)
        self.client.force_login(User.objects.create_user("bob"))

        assert self.post(self.KEY).status_code == 201
        assert Order.objects.count() == 2


class PlacingAnOrderInAnAsyncView(TestCase):
    async def test_the_command_runs_in_a_thread(self) -> None:
        await self.async_client.aforce_login(await User.objects.acreate_user("ada"))
        with record(mediator):
            response = await self.async_client.post("/async/orders", {"article": "book"})

        assert response.json() == {"order": (await Order.objects.aget()).pk}

    async def test_in_the_event_loop_it_is_an_error(self) -> None:
        with self.assertRaises(SynchronousOnlyOperation):  # noqa: PT027 -- as in Django's own documentation
            mediator.send(PlaceOrder("ada", "book"))


@skipUnlessDBFeature("has_select_for_update")
class PlacingAnOrderThatIsBeingPlaced(TransactionTestCase):
    def tearDown(self) -> None:
        # Ends the threads that deliver, with their connections, so that Django can drop the test database.
        mediator.relay.quiesce()

    def post(self, key: str) -> int:
        try:
            return self.client.post("/orders", {"article": "book"}, headers={"Idempotency-Key": key}).status_code
        finally:
            connection.close()

    def test_it_is_refused_while_the_first_request_is_in_progress(self) -> None:
        key, user = PlacingAnOrderOverHttp.KEY, User.objects.create_user("ada")
        self.client.force_login(user)
        with ThreadPoolExecutor(1) as clients, transaction.atomic():
            mediator.send(PlaceOrder("ada", "book"), idempotency_key=key, scope=str(user.pk))
            assert clients.submit(self.post, key).result() == 409

        assert self.post(key) == 201
        eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)
        assert Order.objects.get().invoices == 1
