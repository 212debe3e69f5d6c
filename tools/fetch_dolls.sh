#!/bin/sh
# Fetches the source archive of Dungeon Crawl Stone Soup with apt, checks its SHA-256 and unpacks the player tiles that recipes/data/dolls.toml needs.
#
#   tools/fetch_dolls.sh [FOLDER]      default: data/sources/crawl
#
# Needs Debian or Ubuntu with source packages enabled (a `deb-src` line), tar and xz. Elsewhere: put crawl_0.28.0.orig.tar.xz into FOLDER and run it again.
set -eu

folder=${1:-data/sources/crawl}
archive=$folder/crawl_0.28.0.orig.tar.xz
sha256=5a6be168f8888b84bdb199184ca20bd8636f77ba7e9e0124ebee8850092f2f47
mkdir -p "$folder"

checksum() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

if [ ! -f "$archive" ]; then
    echo "fetching the source of crawl 0.28.0" >&2
    (cd "$folder" && apt-get source --download-only --tar-only crawl >/dev/null)
fi
found=$(checksum "$archive")
if [ "$found" != "$sha256" ]; then
    echo "error: $archive: expected SHA-256 $sha256, found $found" >&2
    exit 1
fi
rm -rf "$folder/player"
mkdir "$folder/player"
# Everything below .../rltiles/player/, without what stands before it.
depth=$(tar -tf "$archive" | grep -m 1 '/rltiles/player/$' | tr -cd / | wc -c)
tar -xf "$archive" -C "$folder/player" --strip-components="$depth" --wildcards '*/rltiles/player/*'
echo "the parts are in $folder/player" >&2
