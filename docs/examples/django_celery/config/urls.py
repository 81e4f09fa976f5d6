from django.urls import path
from orders import async_views, views

urlpatterns = [
    path("orders", views.place_order),
    path("async/orders", async_views.place_order),
]
