from django.urls import path
from meetings import views

urlpatterns = [path("meetings/<slug:meeting_id>/join", views.join)]
