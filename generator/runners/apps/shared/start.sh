#!/bin/sh
# Starts the app. Settings come from the environment, and from .env when there is one.
set -eu
cd "$(dirname "$0")"
if [ -f .env ]; then
    set -a
    . ./.env
    set +a
fi
exec python3 app.py
