"""Numbers as people read them."""

from __future__ import annotations

from django import template

register = template.Library()


@register.filter
def grouped(number: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{number:,}"
