"""Requests. Two modules with a test case that delivers share one mediator."""

from __future__ import annotations

from meetings.models import Participation
from meetings.testing import DeliveringTestCase


class JoiningAMeetingOverHttp(DeliveringTestCase):
    def join(self, user_id: str) -> int:
        return self.client.post("/meetings/weekly/join", {"user": user_id}).status_code

    def test_a_request_that_commits_is_announced(self) -> None:
        """The view returns the handler's response; after the commit the handlers have run and the event has left."""
        response = self.client.post("/meetings/weekly/join", {"user": "ada"})

        assert response.json() == {"present": 1}
        assert self.published() == ["meeting.joined"]
        assert Participation.objects.get().welcomed

    def test_a_request_that_is_rolled_back_is_not_announced(self) -> None:
        """The view refuses the fourth user, after the command has succeeded."""
        codes = [self.join(user_id) for user_id in ("ada", "bob", "cleo", "dan")]

        assert codes == [200, 200, 200, 403]
        assert self.published() == ["meeting.joined"] * 3
        assert Participation.objects.count() == 3
