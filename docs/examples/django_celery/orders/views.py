from __future__ import annotations

import re

from django.contrib.auth.decorators import login_required
from django.db import OperationalError
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

import cqrs_sync as cqrs
from orders.mediator import mediator
from orders.messages import PlaceOrder

LOCK_TIMEOUT = "55P03"  # PostgreSQL's code for it


@login_required
@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    key = request.headers.get("Idempotency-Key", "").strip('"')
    if not re.fullmatch(r"[!-~]{16,64}", key):
        return problem(400, "Idempotency-Key must have 16 to 64 characters")
    command = PlaceOrder(request.user.get_username(), request.POST["article"])
    scope = str(request.user.pk)
    try:
        number = mediator.send(command, idempotency_key=key, scope=scope, timeout=20)
    except cqrs.IdempotencyKeyConflict:
        return problem(422, "Idempotency-Key was used for another order")
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != LOCK_TIMEOUT:
            raise
        return problem(409, "a request with this Idempotency-Key is in progress")
    return JsonResponse({"order": number}, status=201)


def problem(status: int, title: str) -> JsonResponse:
    content = {"type": "https://shop.example/docs/idempotency", "title": title, "status": status}
    return JsonResponse(content, status=status, content_type="application/problem+json")
