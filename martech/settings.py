"""Django's settings, from the environment through typed helpers; the README lists every variable."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cdp import config as cdp_config
from martech import logging as log_settings
from martech.embedded import options
from martech.lib import env, http
from martech.lib.errors import ConfigurationError

BASE_DIR = Path(__file__).resolve().parent.parent
CONFIG = cdp_config.load()

OPTIONS = options.load()

DEBUG = env.flag("DEBUG", False, "Show Django's error pages; never on a public address")
SECRET_KEY = env.text("SECRET_KEY", "", "Signs sessions; `make up` keeps one in MARTECH_DATA")
if not SECRET_KEY:
    raise ConfigurationError(
        "SECRET_KEY is not set. Start with `make up` or `manage.py`, which keep one in MARTECH_DATA, "
        "or set it to 50 or more random characters."
    )
ALLOWED_HOSTS = env.names("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]", "Host names the web process answers to")
CSRF_TRUSTED_ORIGINS = env.names("CSRF_TRUSTED_ORIGINS", "", "Origins (https://…) the admin accepts forms from")

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "django_celery_beat",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "martech",
    "cdp",
    "crm",
    "emails",
]

MIDDLEWARE = [
    "martech.health.probes",
    "django.middleware.security.SecurityMiddleware",
    "martech.static.StaticFiles",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "martech.urls"
ASGI_APPLICATION = "martech.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


PROCESS = env.text("MARTECH_PROCESS", "command", "What this process is called in PostgreSQL; `make up` sets it")


# A process that stands still within a transaction lets go of its locks, for which processors wait. What DATABASE_URL
# says in its own `options` comes later, and wins.
SESSION = "-c idle_in_transaction_session_timeout=60s"


def _database(url: str) -> dict:
    """Django's settings for a PostgreSQL address; the address may name a Unix socket as `?host=`."""
    import psycopg.conninfo

    parts = psycopg.conninfo.conninfo_to_dict(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.pop("dbname", "martech"),
        "USER": parts.pop("user", ""),
        "PASSWORD": parts.pop("password", ""),
        "HOST": parts.pop("host", ""),
        "PORT": str(parts.pop("port", "")),
        "OPTIONS": {
            "pool": {"min_size": 0, "max_size": 8},
            "application_name": f"martech-{PROCESS}",
            "options": f"{SESSION} {parts.pop('options', '')}".strip(),
            **parts,
        },
    }


DATABASES = {"default": _database(CONFIG.database_url)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": CONFIG.cache_url}}
SESSION_ENGINE = "django.contrib.sessions.backends.db"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]

# Uploads wait here until their rows are in the log; every process that runs tasks has to see them.
MEDIA_ROOT = OPTIONS.data / "files"
FILE_UPLOAD_PERMISSIONS = 0o600
FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o700
IMPORT_UPLOAD_BYTES = 2**20 * env.integer(
    "IMPORT_UPLOAD_MB", 1024, "Largest file, in MiB, that the admin takes for an import; the command has no limit"
)

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
# One language, and times by 24 hours.
USE_I18N = False
FORMAT_MODULE_PATH = "martech.formats"
STATIC_URL = "static/"
# Served from the packages themselves: no collectstatic step before the first page.
WHITENOISE_USE_FINDERS = True

LOGGING = log_settings.from_environment()
METRICS_TOKEN = env.text(
    "METRICS_TOKEN", "", "Bearer token that lets other machines read /metrics and the details of /readyz"
)

DEMO_EXIT = env.flag("DEMO_EXIT", False, "`make demo` stops after the comparison, with its exit status")

# Where calls to other companies' servers may go.
OUTGOING = http.Guard.parse(
    env.names("OUTGOING_PRIVATE_HOSTS", "", "Hosts, or host:port, of our own that outgoing calls may reach"),
    env.names("OUTGOING_PORTS", "80,443", "Ports that outgoing calls may use on public hosts"),
)


def _broker(url: str) -> str:
    """Return a Redis address as Celery writes it: a Unix socket has another scheme and parameter there."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    return f"redis+socket://{parts.path}?virtual_host={parse_qs(parts.query).get('db', ['0'])[0]}"


TASK_SECONDS = env.integer("TASK_SECONDS", 900, "A task that runs for longer is stopped", minimum=1)
TASK_REDELIVERY_SECONDS = env.integer(
    "TASK_REDELIVERY_SECONDS", 1200, "A task whose worker was killed is delivered again after this", minimum=1
)
TASK_RUN_DAYS = env.integer("TASK_RUN_DAYS", 7, "Days for which the runs of tasks are kept", minimum=1)
EVENT_RETENTION_DAYS = env.integer("EVENT_RETENTION_DAYS", 0, "Days after which events are dropped; 0: never")

ARCHIVE_EVENTS = env.flag(
    "ARCHIVE_EVENTS", False, "Write each closed partition of events to Parquet files; only what is there is dropped"
)
ARCHIVE_BUCKETS = env.integer(
    "ARCHIVE_BUCKETS", 16, "Files, by person, that a partition of events becomes", minimum=1, maximum=1024
)
_ARCHIVE_DIR = env.text("ARCHIVE_DIR", "", "Directory of the archive; empty: archive in MARTECH_DATA")
_ARCHIVE_STORAGE = env.text(
    "ARCHIVE_STORAGE", "", "Class of another storage for it, such as storages.backends.s3.S3Storage"
)
_ARCHIVE_OPTIONS = env.document("ARCHIVE_OPTIONS", "{}", "That storage's options, as a JSON object")
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "archive": {"BACKEND": _ARCHIVE_STORAGE, "OPTIONS": _ARCHIVE_OPTIONS}
    if _ARCHIVE_STORAGE
    else {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        # Personal data: for nobody else on this machine.
        "OPTIONS": {
            "location": _ARCHIVE_DIR or OPTIONS.data / "archive",
            "file_permissions_mode": 0o600,
            "directory_permissions_mode": 0o700,
        },
    },
}

CELERY_BROKER_URL = _broker(CONFIG.broker_url)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": TASK_REDELIVERY_SECONDS,
    # Look every so many seconds for tasks whose worker was killed; the default is every 100.
    "unacked_restore_interval": max(1, min(10, TASK_REDELIVERY_SECONDS // 4)),
    "unacked_restore_throttle": 1,
    # A server that went away without closing its connections is noticed.
    "socket_connect_timeout": 5,
    "socket_timeout": 30,
    "socket_keepalive": True,
}
# No results are kept; this is the second of the three places of the same figure (Celery: the shortest wins).
CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {"visibility_timeout": TASK_REDELIVERY_SECONDS}
CELERY_RESULT_EXPIRES = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
# A killed worker's task is delivered again; its starts are counted, so that it cannot go on for ever.
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
# How long a dead process's result is waited for, before its task is given back.
CELERY_WORKER_LOST_WAIT = 1.0
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_TIME_LIMIT = TASK_SECONDS
CELERY_TASK_SOFT_TIME_LIMIT = TASK_SECONDS * 0.9
CELERY_WORKER_MAX_TASKS_PER_CHILD = 1000
# On SIGQUIT (SIGTERM too with REMAP_SIGTERM=SIGQUIT): wait so long for running tasks, then give them back.
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 5.0
# Anyone who reaches the broker could stop workers, and events are what /metrics tells already.
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "martech.beat:SlotScheduler"
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_CREATE_MISSING_QUEUES = False
_QUEUES = ("default", "traits", "crm", "email", "email-transactional", "ml")
CELERY_TASK_QUEUES: dict[str, dict] = {name: {} for name in _QUEUES}
# Everything else goes to the default queue; the first line that fits counts.
CELERY_TASK_ROUTES = {
    "cdp.tasks.recompute_*": {"queue": "traits"},
    "crm.tasks.*": {"queue": "crm"},
    "emails.tasks.*_transactional": {"queue": "email-transactional"},
    "emails.tasks.train_*": {"queue": "ml"},
    "emails.tasks.*": {"queue": "email"},
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "cdp.api.access.ApiKeyAuthentication",
        "cdp.api.access.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["cdp.api.access.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["martech.rendering.Json"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_METADATA_CLASS": None,
    "EXCEPTION_HANDLER": "martech.problem.handle",
    "URL_FORMAT_OVERRIDE": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Martech",
    "DESCRIPTION": "A customer data platform: events in, profiles out. Errors are RFC 9457 problems with a code.",
    "VERSION": "1",
    "SCHEMA_PATH_PREFIX": "/v1",
    "TAGS": [
        {"name": name}
        for name in (
            "tracking",
            "profiles",
            "identity-decisions",
            "traits",
            "sources",
            "imports",
            "dead-letters",
            "api-keys",
            "erasures",
            "suppressed-identifiers",
            "audit-entries",
        )
    ],
    "SERVE_AUTHENTICATION": [],
    "SERVE_INCLUDE_SCHEMA": False,
    "ENUM_NAME_OVERRIDES": {
        "SourceKind": "cdp.models.Source.Kind",
        "DecisionKind": "cdp.models.IdentityDecision.Kind",
        "DeadLetterStatus": "cdp.models.DeadLetter.Status",
        "ErasureStatus": "cdp.models.Erasure.Status",
    },
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "martech.openapi.complete",
    ],
}
UNFOLD = {
    "SITE_TITLE": "Martech",
    "SITE_HEADER": "Martech",
    "SITE_SUBHEADER": "Customer data platform",
    "SITE_SYMBOL": "hub",
    "SITE_URL": None,
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.604)",
            "100": "oklch(93.2% .032 255.585)",
            "200": "oklch(88.2% .059 254.128)",
            "300": "oklch(80.9% .105 251.813)",
            "400": "oklch(70.7% .165 254.624)",
            "500": "oklch(62.3% .214 259.815)",
            "600": "oklch(54.6% .245 262.881)",
            "700": "oklch(48.8% .243 264.376)",
            "800": "oklch(42.4% .199 265.638)",
            "900": "oklch(37.9% .146 265.522)",
            "950": "oklch(28.2% .091 267.935)",
        }
    },
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "/static/cdp/favicon.svg"}],
    "STYLES": ["/static/cdp/admin.css"],
    "SCRIPTS": ["/static/cdp/admin.js"],
    "DASHBOARD_CALLBACK": "cdp.admin.site.dashboard",
    "SIDEBAR": {"navigation": "cdp.admin.site.navigation"},
}
