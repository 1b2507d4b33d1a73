"""Django's settings, from the environment through typed helpers; the README lists every variable."""

from pathlib import Path

from cdp import config as cdp_config
from martech.lib import env
from martech.lib.errors import ConfigurationError

BASE_DIR = Path(__file__).resolve().parent.parent
CONFIG = cdp_config.load()

MARTECH_DATA = Path(
    env.text("MARTECH_DATA", ".martech", "Directory of the embedded servers, secrets, metrics and logs")
).resolve()
PORT = env.integer("PORT", 8000, "Port of the web process", minimum=1, maximum=65535)
WEB_WORKERS = env.integer("WEB_WORKERS", 1, "Granian worker processes", minimum=1, maximum=256)

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
    "cdp",
    "crm",
    "emails",
]

MIDDLEWARE = [
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
        "OPTIONS": {"pool": {"min_size": 0, "max_size": 8}, **parts},
    }


DATABASES = {"default": _database(CONFIG.database_url)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": CONFIG.cache_url}}
SESSION_ENGINE = "django.contrib.sessions.backends.db"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
# Served from the packages themselves: no collectstatic step before the first page.
WHITENOISE_USE_FINDERS = True

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
    "DESCRIPTION": "A customer data platform: events in, profiles out. Errors are RFC 9457 problems with a stable code.",
    "VERSION": "1",
    "SCHEMA_PATH_PREFIX": "/v1",
    "SERVE_AUTHENTICATION": [],
    "SERVE_INCLUDE_SCHEMA": False,
    "ENUM_NAME_OVERRIDES": {
        "SourceKind": "cdp.models.Source.Kind",
        "DecisionKind": "cdp.models.IdentityDecision.Kind",
        "DeadLetterStatus": "cdp.models.DeadLetter.Status",
    },
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "martech.openapi.complete",
    ],
}
