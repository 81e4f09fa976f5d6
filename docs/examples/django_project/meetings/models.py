from __future__ import annotations

from django.db import models


class Meeting(models.Model):
    id = models.SlugField(primary_key=True)

    def __str__(self) -> str:
        return self.pk


class Participation(models.Model):
    meeting = models.ForeignKey(Meeting, on_delete=models.CASCADE)
    user_id = models.CharField(max_length=100)
    welcomed = models.BooleanField(default=False)

    class Meta:
        constraints = (models.UniqueConstraint(fields=["meeting", "user_id"], name="a_user_joins_once"),)

    def __str__(self) -> str:
        return f"{self.user_id} in {self.meeting_id}"
