"""All addresses of the Django part; the tracking API is served in front of it (`martech.asgi`)."""

from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
