"""All addresses of the Django part; the tracking API is served in front of it (`martech.asgi`)."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("v1/", include("cdp.urls")),
]

handler400 = "martech.problem.bad_request"
handler403 = "martech.problem.permission_denied"
handler404 = "martech.problem.not_found"
handler500 = "martech.problem.server_error"
