#!/bin/sh
# A node of a Ray cluster that answers only those who know its token: `start-ray head`, or
# `start-ray worker`, which joins the head that RAY_HEAD names (HOST:PORT).
# RAY_CPUS and RAY_GPUS say what the node offers to cells; left out: a head nothing, a worker all.
# Leaves out what KubeRay and SLURM do: they start Ray themselves.
set -eu

if [ "${RAY_AUTH_MODE:-}" != token ] || [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    echo "start-ray: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH:" \
        "without a token Ray runs the code of everybody who reaches it" >&2
    exit 2
fi

role=${1:-}
set -- --block --disable-usage-stats \
    --dashboard-agent-listen-port="${RAY_AGENT_PORT:-52365}" \
    --object-store-memory="${RAY_OBJECT_STORE_BYTES:-1000000000}"
if [ -n "${RAY_TEMP_DIR:-}" ]; then set -- "$@" --temp-dir="$RAY_TEMP_DIR"; fi
if [ -n "${RAY_NODE_IP:-}" ]; then set -- "$@" --node-ip-address="$RAY_NODE_IP"; fi
case $role in
    head)
        exec ray start --head "$@" --port="${RAY_PORT:-6379}" \
            --dashboard-host="${RAY_DASHBOARD_HOST:-0.0.0.0}" \
            --dashboard-port="${RAY_DASHBOARD_PORT:-8265}" \
            --ray-client-server-port="${RAY_CLIENT_PORT:-10001}" \
            --num-cpus="${RAY_CPUS:-0}" --num-gpus="${RAY_GPUS:-0}"
        ;;
    worker)
        if [ -n "${RAY_CPUS:-}" ]; then set -- "$@" --num-cpus="$RAY_CPUS"; fi
        if [ -n "${RAY_GPUS:-}" ]; then set -- "$@" --num-gpus="$RAY_GPUS"; fi
        exec ray start --address="${RAY_HEAD:?the head: HOST:PORT}" "$@"
        ;;
    *)
        echo "start-ray: got '$role'; expected head or worker" >&2
        exit 2
        ;;
esac
