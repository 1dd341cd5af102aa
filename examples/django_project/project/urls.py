"""Django's part: the page, and its own login and logout."""

from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import path

from project.chat import hub


@login_required
def page(request: HttpRequest) -> HttpResponse:
    """Show the chat."""
    return render(request, "chat.html")


@login_required
def color(request: HttpRequest) -> JsonResponse:
    """Keep a colour in the session, or return the one that is there.

    A socket may have put it there: see ``Chat.on_message``.
    """
    if request.method == "POST":
        request.session["color"] = request.POST["color"]
    return JsonResponse({"color": request.session.get("color")})


@login_required
def announce(request: HttpRequest) -> JsonResponse:
    """Say something to everyone in the room, from a plain view in one of Django's threads."""
    sent = hub.broadcast("lobby", f"Announcement: {request.POST['text']}")
    return JsonResponse({"reached": sent.result(timeout=5).reached})


urlpatterns = [
    path("", page),
    path("color", color),
    path("announce", announce),
    path("accounts/login/", LoginView.as_view()),
    path("accounts/logout/", LogoutView.as_view()),
]
