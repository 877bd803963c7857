#!/usr/bin/env bash
# A copy of a store, and of the databases and artifacts of its MLflow, in a new folder with
# checksums. Right while cells are running: of each cell the marks are copied first, then its
# checkpoints, then its journal, so that no mark and no checkpoint is ahead of the lines that it
# stands for; what changed under our hands is copied again. The store comes before the databases.
# Leaves out: half-written checkpoints, requests to leave, and what MLflow has of each journal
# (tracked.json: without it the next run sends all again, which comes to the same); PostgreSQL's
# roles (pg_dumpall --globals-only); artifacts in a bucket (its own tool copies them); secrets.
set -euo pipefail

usage() {
    cat <<'END'
usage: deploy/backup.sh --store STORE [--database NAME]... [--artifacts FOLDER] TO

  --store STORE       the store of banditgrid; its mlflow.db too, where it has one
  --database NAME     a database of PostgreSQL: MLflow's, and MLflow's users'. Where it is, and who
                      asks, say PGHOST, PGPORT, PGUSER and PGPASSWORD, or ~/.pgpass
  --artifacts FOLDER  what the MLflow server was given as --artifacts-destination
  TO                  a folder that is not there yet
END
}

fail() {
    echo "backup: $*" >&2
    exit 2
}

store='' artifacts='' to='' databases=()
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
            [ -z "$to" ] || fail "two folders to write to: $to and $1"
            to=${1%/}
            shift
            ;;
    esac
done
if [ -z "$store" ] || [ -z "$to" ]; then usage >&2 && exit 2; fi
[ -d "$store" ] || fail "--store $store: no such folder"
[ -z "$artifacts" ] || [ -d "$artifacts" ] || fail "--artifacts $artifacts: no such folder"
[ ! -e "$to" ] || fail "$to is there already; a backup is written into a new folder"
for name in ${databases[@]+"${databases[@]}"}; do
    [[ $name =~ ^[A-Za-z0-9_-]+$ ]] || fail "--database $name: expected the name of a database"
done

for origin in "$store" ${artifacts:+"$artifacts"}; do # else the copy would take itself in
    case $(realpath -m "$to")/ in
        "$(realpath "$origin")"/*) fail "$to lies in $origin, of which it is to be a copy; name a folder elsewhere" ;;
    esac
done

mkdir -p "$(dirname "$to")"
part=$(mktemp -d "$to.part.XXXXXX") # for its owner alone: answers, and hashes of passwords
trap 'rm -rf "$part"' EXIT
mkdir "$part/store"

marks() { # what a cell's finished work is told by
    cat "$1/done.json" 2>/dev/null || true
    cat "$1/failed.json" 2>/dev/null || true
}

copy_file() { # one file, if it is there
    [ ! -e "$1" ] || cp -p "$1" "$2/"
}

copy_cell_once() { # FROM TO: fails where something was taken away meanwhile
    local before name
    rm -rf "$2"
    mkdir -p "$2"
    before=$(marks "$1")
    copy_file "$1/done.json" "$2" || return 1
    copy_file "$1/failed.json" "$2" || return 1
    [ ! -d "$1/checkpoint" ] || cp -a "$1/checkpoint" "$2/" || return 1
    for name in journal.jsonl timings.jsonl samples.jsonl outcomes.parquet; do
        copy_file "$1/$name" "$2" || return 1
    done
    for name in "$1"/* "$1"/.lease.*; do
        case ${name##*/} in
            done.json | failed.json | checkpoint | *.jsonl | outcomes.parquet) ;;
            tracked.json | leave.json | '*' | '.lease.*') ;;
            .lease.*) copy_lease "$name" "$2/${name##*/}" || return 1 ;;
            *) cp -a "$name" "$2/" || return 1 ;;
        esac
    done
    copy_file "$1/attempts.jsonl" "$2" || return 1
    [ "$before" = "$(marks "$1")" ]
}

copy_lease() { # who held the cell, without what was being written
    mkdir -p "$2"
    copy_file "$1/holder.json" "$2" && copy_file "$1/lock" "$2"
}

copy_cell() {
    local try
    for try in 1 2 3 4 5 6; do
        if copy_cell_once "$1" "$2" 2>"$part/errors"; then return; fi
        sleep "$try"
    done
    cat "$part/errors" >&2
    fail "$1 changes faster than it can be copied, or cannot be read; stop its study and try again"
}

count=0
for cell in "$store"/*/cells/*/; do
    [ -d "$cell" ] || continue
    cell=${cell%/}
    copy_cell "$cell" "$part/store/${cell#"$store"/}"
    count=$((count + 1))
done
rm -f "$part/errors"

copy_other() { # a file or a link beside cells, unless it was taken away meanwhile
    mkdir -p "$part/store/$(dirname "$1")"
    if cp -pP "$store/$1" "$part/store/$1" 2>"$part/errors"; then return; fi
    if [ ! -e "$store/$1" ] && [ ! -L "$store/$1" ]; then
        rm -f "$part/store/$1"
        return
    fi
    cat "$part/errors" >&2
    fail "$store/$1 cannot be copied"
}

# What studies and the store have beside cells; names with a dot are being written. A study that is
# a link to a folder elsewhere is copied as a folder.
studies=(.)
for study in "$store"/*/; do
    if [ -L "${study%/}" ] && [ -d "$study/cells" ]; then studies+=("./$(basename "$study")/"); fi
done
(cd "$store" && find "${studies[@]}" -name '.?*' -prune -o -regex '\./[^/]*/cells' -prune -o \
    -name leave.json -o -name 'mlflow.db*' -o \( -type f -o -type l \) -print0) |
    while IFS= read -r -d '' name; do
        if [[ " ${studies[*]} " != *" $name/ "* ]]; then copy_other "$name"; fi
    done
rm -f "$part/errors"

if [ -f "$store/mlflow.db" ]; then
    python3 -c 'if True:
        import sqlite3, sys
        with sqlite3.connect(sys.argv[1]) as origin, sqlite3.connect(sys.argv[2]) as copy:
            origin.backup(copy)' "$store/mlflow.db" "$part/store/mlflow.db"
fi
for name in ${databases[@]+"${databases[@]}"}; do
    mkdir -p "$part/databases"
    pg_dump --no-password --format=custom --file="$part/databases/$name.dump" --dbname="$name" ||
        fail "pg_dump could not read the database $name; PGHOST, PGUSER, PGPASSWORD and the like say where it is"
done
[ -z "$artifacts" ] || { mkdir "$part/artifacts" && cp -a "$artifacts/." "$part/artifacts/"; }

links=$(cd "$part" && find . -type l -printf '%p -> %l\n' | LC_ALL=C sort)
[ -z "$links" ] || echo "$links" >"$part/LINKS"
sums=$(cd "$part" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum)
echo "$sums" >"$part/SHA256SUMS"
mv -T "$part" "$to"
echo "backup: $to: $count cells, ${#databases[@]} databases, $(wc -l <"$to/SHA256SUMS") files, $(du -sh "$to" | cut -f1)"
