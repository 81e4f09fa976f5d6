from __future__ import annotations

from asgiref.sync import sync_to_async
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from orders.mediator import mediator
from orders.messages import PlaceOrder


@require_POST
async def place_order(request: HttpRequest) -> JsonResponse:
    user = await request.auser()
    command = PlaceOrder(user.get_username(), request.POST["article"])
    number = await sync_to_async(mediator.send)(command, timeout=20)
    return JsonResponse({"order": number}, status=201)
