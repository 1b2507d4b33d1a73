# One image for every process; docker-compose.yml says which command each runs.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DJANGO_SETTINGS_MODULE=martech.settings \
    PROMETHEUS_MULTIPROC_DIR=/var/lib/martech/metrics

WORKDIR /app

COPY requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.txt

COPY manage.py ./
COPY martech martech/
COPY cdp cdp/
COPY crm crm/
COPY emails emails/

RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin martech \
    && install -d -o martech -g martech /var/lib/martech /var/lib/martech/files /var/lib/martech/metrics \
        /var/lib/martech/archive \
    && python -m compileall -q martech cdp crm emails
USER martech

EXPOSE 8000
CMD ["python", "-m", "granian", "--interface", "asgi", "--host", "0.0.0.0", "--port", "8000", "--loop", "uvloop", "martech.asgi:application"]
