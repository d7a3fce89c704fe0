#!/usr/bin/env bash
# A comparison as a Ray job, on a cluster of this machine alone that the script starts, with token authentication, and
# stops. With a cluster that runs already (`backbone up` starts one that stays) you need only the `ray job submit` line;
# docs/cluster.md says where its address and its token come from.
#
#   examples/ray_job_submit.sh SPEC STORAGE       # RAY_PORTS="6379 8265 0 10001" chooses the ports, 0 a free one
set -euo pipefail

spec=$(realpath "$1")
read -r gcs_port dashboard_port agent_port client_port <<< "${RAY_PORTS:-6379 8265 0 10001}"
client_port=${client_port:-$((agent_port + 1))} # Ray's workers have 10002 to 19999
cd "$(dirname "$0")/.."

# Results must outlive the job, whose working directory is a copy: the driver finds BACKBONE_STORAGE on the head.
if [ $# -gt 1 ]; then BACKBONE_STORAGE=$(realpath "$2") && export BACKBONE_STORAGE; fi

# Whoever has the token can run any code here, so nobody else may read it. Server and clients need both variables.
session=$(mktemp -d /tmp/ray-job-XXXXXX)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$session/token
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")

# In the foreground (--block) the head takes its processes along when it ends; `ray stop` would end other people's too.
ray start --head --block --disable-usage-stats --num-cpus=4 --temp-dir="$session" --port="$gcs_port" \
  --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" --dashboard-agent-listen-port="$agent_port" \
  --ray-client-server-port="$client_port" \
  > "$session/head.log" 2>&1 &
head=$!
# Processes that the head leaves behind for a moment still write their logs.
trap 'kill "$head" && wait "$head" || true; rm -rf "$session" || { sleep 3; rm -rf "$session"; }' EXIT

address=http://127.0.0.1:$dashboard_port
until ray job list --address "$address" > "$session/list.log" 2>&1; do
  kill -0 "$head" || { cat "$session/head.log"; exit 1; } # it ended: a port was taken
  sleep 1
done
echo "Ray's dashboard is at $address"

ray job submit --address "$address" --working-dir . -- python -m jobs.compare "$spec"
