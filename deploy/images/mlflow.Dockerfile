# syntax=docker/dockerfile:1
# An MLflow server with users, on PostgreSQL and an S3 store; and the two programs that make its
# users and its bucket. Every version is constraints.txt's. Build from the repository's root:
#   docker build -f deploy/images/mlflow.Dockerfile -t banditgrid-mlflow .
# Leaves out torch, Ray and the code that trains.

ARG PYTHON=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_INDEX_URL
WORKDIR /build
COPY constraints.txt deploy/images/mlflow.txt ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --constraint constraints.txt --requirement mlflow.txt \
    && find /opt/venv -name __pycache__ -type d -prune -exec rm -rf {} +

FROM ${PYTHON}
LABEL org.opencontainers.image.title="banditgrid-mlflow" \
      org.opencontainers.image.description="MLflow with users, PostgreSQL and S3"
RUN groupadd --gid 10001 mlflow && useradd --uid 10001 --gid mlflow --create-home mlflow
COPY --from=build /opt/venv /opt/venv
COPY deploy/mlflow/users.py deploy/mlflow/bucket.py deploy/mlflow/basic_auth.ini /opt/mlflow/
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_AUTH_CONFIG_PATH=/opt/mlflow/basic_auth.ini MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
USER 10001:10001
WORKDIR /home/mlflow
EXPOSE 5000
CMD ["mlflow", "server", "--app-name=basic-auth", "--enable-workspaces", "--host=0.0.0.0"]
