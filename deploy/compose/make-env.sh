#!/bin/sh
# Writes .env beside compose.yaml: random passwords, readable by you alone. Run it once: a file that
# is there stays as it is, for the volumes know its passwords.
set -eu
cd "$(dirname "$0")"
umask 077

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

if [ -e .env ]; then
    echo "make-env: $PWD/.env is there and stays as it is" >&2
    exit 0
fi
new=$(mktemp .env.XXXXXX)
trap 'rm -f "$new"' EXIT
cat >"$new" <<END
# Passwords of this set-up, made by make-env.sh. Keep it with your backups, and out of git.
POSTGRES_PASSWORD=$(random)
S3_ACCESS_KEY=$(random)
S3_SECRET_KEY=$(random)
MLFLOW_SECRET_KEY=$(random)
MLFLOW_ADMIN_PASSWORD=$(random)
MLFLOW_TRAINER_PASSWORD=$(random)
MLFLOW_READER_PASSWORD=$(random)
RAY_AUTH_TOKEN=$(random)

# What else may be set, with what it is otherwise:
# BIND=127.0.0.1                 address that MLflow and Ray's dashboard listen on; see the README
# MLFLOW_PORT=5000
# RAY_DASHBOARD_PORT=8265
# MLFLOW_ALLOWED_HOSTS=          names that MLflow is reached by from elsewhere, with commas
# MLFLOW_ALLOWED_ORIGINS=        and as a browser writes them: https://mlflow.example
# RAY_WORKERS=1                  nodes that train
# RAY_CPUS=                      cores that each offers; all
# TORCH_INDEX=                   index of PyTorch's CPU builds, for building the image
# EXTRAS=                        vllm, liger, reasoning-gym, with commas
# HF_TOKEN=                      of the hub, for models that ask for their licence
END
# A hard link is never made over a file that is there, should two run at once.
ln "$new" .env
echo "make-env: wrote $PWD/.env" >&2
