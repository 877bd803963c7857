#!/usr/bin/env bash
# Puts back what deploy/backup.sh copied: the store, databases of PostgreSQL, artifacts. Checks every
# checksum, that nothing was added, and that nothing is in the places, before it writes anything: it
# never writes over what is there. Leaves out making databases and roles, and starting servers.
set -euo pipefail

usage() {
    cat <<'END'
usage: deploy/restore.sh --store STORE [--database NAME]... [--artifacts FOLDER] FROM

  --store STORE       where the store goes: absent or empty. Take its old path where it had an
                      mlflow.db, which names its artifacts by their full path
  --database NAME     an empty database of PostgreSQL (createdb NAME) of a name in the backup; PGHOST,
                      PGPORT, PGUSER and PGPASSWORD, or ~/.pgpass, say where. Its owner runs this
  --artifacts FOLDER  where MLflow's artifacts go: absent or empty
  FROM                what backup.sh wrote
END
}

fail() {
    echo "restore: $*" >&2
    exit 2
}

store='' artifacts='' from='' databases=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit ;;
        --store | --database | --artifacts)
            [ $# -ge 2 ] || fail "$1 needs a value; --help tells"
            case $1 in
                --store) store=${2%/} ;;
                --database) databases+=("$2") ;;
                --artifacts) artifacts=${2%/} ;;
            esac
            shift 2
            ;;
        -*) fail "unknown option $1; --help tells" ;;
        *)
            [ -z "$from" ] || fail "two folders to read: $from and $1"
            from=${1%/}
            shift
            ;;
    esac
done
if [ -z "$store" ] || [ -z "$from" ]; then usage >&2 && exit 2; fi
for name in ${databases[@]+"${databases[@]}"}; do
    [[ $name =~ ^[A-Za-z0-9_-]+$ ]] || fail "--database $name: expected the name of a database"
done

empty() { # absent, or a folder with nothing in it
    [ ! -e "$1" ] || { [ -d "$1" ] && [ -z "$(ls -A "$1")" ]; }
}

[ -f "$from/SHA256SUMS" ] || fail "$from is no whole backup: it has no SHA256SUMS"
kept=$(
    LC_ALL=C sort "$from/SHA256SUMS"
    [ ! -f "$from/LINKS" ] || cat "$from/LINKS"
)
found=$(cd "$from" && find . -type f ! -path ./SHA256SUMS -print0 | xargs -0 -r sha256sum | LC_ALL=C sort &&
    find . -type l -printf '%p -> %l\n' | LC_ALL=C sort)
if [ "$kept" != "$found" ]; then
    diff <(echo "$kept") <(echo "$found") | sed -n -E 's/^[<>] (\\?[0-9a-f]{64} [ *])?//p' | sort -u >&2 || true
    fail "$from is damaged: the files named above were changed, lost or added since; take another backup"
fi
empty "$store" || fail "--store $store is there and not empty; move it away, or name another folder"
[ -z "$artifacts" ] || [ -d "$from/artifacts" ] || fail "$from holds no artifacts"
[ -z "$artifacts" ] || empty "$artifacts" || fail "--artifacts $artifacts is there and not empty; move it away"
for name in ${databases[@]+"${databases[@]}"}; do
    [ -f "$from/databases/$name.dump" ] || fail "$from holds no database $name"
    tables=$(psql --no-psqlrc --no-password -At --dbname="$name" -c \
        "select count(*) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')") ||
        fail "the database $name cannot be asked; make it (createdb $name), and say where it is by PGHOST, PGUSER, PGPASSWORD and the like"
    [ "$tables" = 0 ] || fail "the database $name holds $tables tables; stop MLflow, then dropdb $name and createdb $name, or restore into another"
done

for name in ${databases[@]+"${databases[@]}"}; do
    pg_restore --no-password --no-owner --exit-on-error --single-transaction --dbname="$name" "$from/databases/$name.dump" ||
        fail "pg_restore could not write the database $name; nothing of it was written"
done
[ -z "$artifacts" ] || { mkdir -p "$artifacts" && cp -a "$from/artifacts/." "$artifacts/"; }
mkdir -p "$store"
cp -a "$from/store/." "$store/"
echo "restore: $store, ${#databases[@]} databases, $(wc -l <"$from/SHA256SUMS") files checked"
