"""What a person is shown when the platform is ready: where things are, and two commands to try."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

from martech.embedded.first_run import ADMIN, Access
from martech.embedded.options import Options

NARROWEST = 100


def base_url(options: Options) -> str:
    """Return the address under which this machine reaches the web process."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(options.host, options.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{options.port}"


def ready_block(options: Options, access: Access, *, colours: bool) -> str:
    """Return the table of addresses, the log-in and the two commands, as text."""
    url = base_url(options)
    table = Table(box=box.ROUNDED, show_header=False, title="Martech is ready", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(options, access, url):
        table.add_row(name, value)
    text = io.StringIO()
    console = Console(file=text, force_terminal=colours, no_color=not colours, highlight=False)
    console.width = max(console.width, NARROWEST)
    console.print(table)
    for title, command in _commands(access, url):
        console.print(f"[bold]{title}[/bold]")
        console.print(command, soft_wrap=True, markup=False)
    return text.getvalue()


def _rows(options: Options, access: Access, url: str) -> list[tuple[str, str]]:
    password = access.admin_password or "the password somebody set"
    return [
        ("Admin", f"{url}/admin/"),
        ("Log-in", f"{ADMIN} / {password}"),
        ("API docs", f"{url}/v1/docs"),
        ("Tracking endpoint", f"{url} (an SDK's host)"),
        ("Write key", access.write_key or "of any source in the admin"),
        ("Metrics", f"{url}/metrics"),
        ("Listens on", _listens_on(options)),
        ("Data", str(options.data)),
    ]


def _listens_on(options: Options) -> str:
    where = f"{options.host}:{options.port}"
    if options.host in ("127.0.0.1", "::1", "localhost"):
        return f"{where}, this machine alone (WEB_HOST moves it)"
    return f"{where} (ALLOWED_HOSTS says by which names others may call it)"


def _commands(access: Access, url: str) -> list[tuple[str, str]]:
    write_key = access.write_key or "WRITE_KEY"
    api_key = access.api_key or "API_KEY"
    message = '{"userId": "ada", "traits": {"name": "Ada", "email": "ada@example.com"}}'
    return [
        (
            "Send an event:",
            f"curl {url}/v1/identify -u '{write_key}:' -H 'Content-Type: application/json' -d '{message}'",
        ),
        ("Read the profile:", f"curl {url}/v1/profiles/user_id:ada -H 'Authorization: Bearer {api_key}'"),
    ]
