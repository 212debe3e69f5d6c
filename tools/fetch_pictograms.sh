#!/bin/sh
# Fetches the npm packages of a pictogram recipe with `npm pack` and checks each against the recipe's SHA-256.
#
#   tools/fetch_pictograms.sh [RECIPE] [FOLDER]      default: recipes/data/pictograms.toml, and the recipe's `source_folder`
#
# Packages that are there and right are not fetched again. Needs npm and sha256sum (or shasum).
set -eu

recipe=${1:-recipes/data/pictograms.toml}
[ -r "$recipe" ] || { echo "error: $recipe: no such recipe" >&2; exit 2; }
folder=${2:-$(sed -n 's/^source_folder = "\(.*\)"/\1/p' "$recipe")}
mkdir -p "$folder"

checksum() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# Each pinned package is three lines, `package`, `version` and `sha256`, in this order.
awk -F '"' '/^package = /{package=$2} /^version = /{version=$2} /^sha256 = /{print package, version, $2}' "$recipe" |
while read -r package version sha256; do
    file=$folder/$(echo "${package#@}" | tr / -)-$version.tgz
    if [ ! -f "$file" ] || [ "$(checksum "$file")" != "$sha256" ]; then
        echo "fetching $package@$version" >&2
        (cd "$folder" && npm pack --silent "$package@$version" >/dev/null)
    fi
    found=$(checksum "$file")
    if [ "$found" != "$sha256" ]; then
        rm -f "$file"
        echo "error: $package@$version: expected SHA-256 $sha256, found $found; the file was removed" >&2
        exit 1
    fi
done
echo "all packages of $recipe are in $folder" >&2
