from __future__ import annotations

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from meetings.mediator import mediator
from meetings.messages import JoinMeeting


@require_POST
def join(request: HttpRequest, meeting_id: str) -> JsonResponse:
    present = mediator.send(JoinMeeting(request.POST["user"], meeting_id))
    if present > settings.SEATS:
        # Rolls the request back, with the row and its events.
        raise PermissionDenied
    return JsonResponse({"present": present})
