//! WebDataset: tar shards in which the files of one sample share a name up to its first dot (`fox.png`, `fox.json`) and stand together.
//!
//! Nothing is unpacked to disk. A plain shard is read by an index of offsets. A compressed shard cannot be entered in the middle; it is
//! unpacked in memory when a sample of it is wanted, at most [`CACHED_SHARD_COUNT`] shards at a time, each at most
//! [`COMPRESSED_SHARD_LIMIT`] bytes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;
use tar::{Archive, Entry};

use super::{CaptionRule, Description, Index, Problem, ProblemKind, Source, walk};
use crate::{DataError, picture};

/// One in use and the next: loaders read shards in order and straddle one border at a time.
const CACHED_SHARD_COUNT: usize = 2;
/// Unpacked size of a `.tar.gz` shard. Published shards are below 1 GiB; a larger one is better kept as plain tar.
const COMPRESSED_SHARD_LIMIT: u64 = 1 << 30;
/// A caption file or JSON description larger than this is not one.
const DESCRIPTION_LIMIT: u64 = 1 << 24;
const BLOCK: u64 = 512;

/// Whether the file name is that of a shard.
pub(super) fn is_shard(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending))
}

fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| !extension.eq_ignore_ascii_case("tar"))
}

/// Indexes one shard, or every shard below a folder, in the order of their names.
pub(super) fn index(root: &Path, rule: CaptionRule) -> Result<Index, DataError> {
    let shard_files: Vec<(PathBuf, String)> = if root.is_file() {
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        vec![(root.to_path_buf(), name)]
    } else {
        walk::files(root)?.into_iter().filter(|file| !file.extension().is_empty() && is_shard(&file.path)).map(|file| (file.path, file.relative)).collect()
    };
    if shard_files.is_empty() {
        let hint = "shards end in .tar, .tar.gz or .tgz";
        return Err(DataError::NoPictures { path: root.to_path_buf(), found: "no shard".into(), hint });
    }
    let mut collected = Collector { rule, ..Collector::default() };
    let mut shards = Vec::new();
    for (path, name) in shard_files {
        let first = collected.entries.len();
        collected.start_shard(shards.len() as u32, shard_stem(&name));
        let compressed = is_compressed(&path);
        let read = if compressed { index_compressed(&path, &mut collected) } else { index_plain(&path, &mut collected) };
        read.map_err(|reason| DataError::Shard { path: path.clone(), reason })?;
        collected.finish_sample();
        shards.push(Shard { path, compressed, samples: first..collected.entries.len() });
    }
    let picture_sizes = collected.entries.iter().map(|entry| entry.picture.size).collect();
    let source = Source::Shards(Shards { shards, entries: collected.entries, unpacked: Mutex::new(Vec::new()) });
    Ok(Index { keys: collected.keys, picture_sizes, source, problems: collected.problems })
}

/// The name without `.tar`, `.tar.gz`, `.tgz`: first part of every key.
fn shard_stem(name: &str) -> &str {
    let lower = name.to_lowercase();
    let ending = [".tar.gz", ".tgz", ".tar"].into_iter().find(|ending| lower.ends_with(ending)).map_or(0, str::len);
    &name[..name.len() - ending]
}

/// The opened shards.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    entries: Vec<SampleEntry>,
    /// Compressed shards in memory, the most recently used last.
    unpacked: Mutex<Vec<(u32, Arc<Vec<u8>>)>>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    compressed: bool,
    samples: Range<usize>,
}

/// Where the files of one sample lie in their (unpacked) shard.
#[derive(Debug)]
struct SampleEntry {
    shard: u32,
    picture: Span,
    text: Option<Span>,
    json: Option<Span>,
}

/// Bytes `offset .. offset + size`.
#[derive(Clone, Copy, Debug)]
struct Span {
    offset: u64,
    size: u64,
}

impl Shards {
    pub fn picture(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let entry = &self.entries[index];
        self.read(entry.shard, entry.picture)
    }

    /// Captions of the text file; where there is none, of the JSON. Fields of the JSON.
    pub fn description(&self, index: usize) -> Result<Description, DataError> {
        let entry = &self.entries[index];
        let mut description = Description::default();
        if let Some(span) = entry.json {
            description = parsed(&self.read(entry.shard, span)?, Description::from_json_bytes, &self.shards[entry.shard as usize].path)?;
        }
        if let Some(span) = entry.text {
            let text = parsed(&self.read(entry.shard, span)?, Description::from_text, &self.shards[entry.shard as usize].path)?;
            if !text.captions.is_empty() {
                description.captions = text.captions;
            }
        }
        Ok(description)
    }

    pub fn blocks(&self) -> Vec<Range<usize>> {
        let mut blocks: Vec<Range<usize>> = Vec::new();
        let mut open_ended = false;
        for shard in self.shards.iter().filter(|shard| !shard.samples.is_empty()) {
            match blocks.last_mut() {
                Some(last) if open_ended && !shard.compressed => last.end = shard.samples.end,
                _ => blocks.push(shard.samples.clone()),
            }
            open_ended = !shard.compressed;
        }
        blocks
    }

    fn read(&self, shard: u32, span: Span) -> Result<Vec<u8>, DataError> {
        let Shard { path, compressed, .. } = &self.shards[shard as usize];
        let failed = |reason: String| DataError::Shard { path: path.clone(), reason };
        if *compressed {
            let bytes = self.unpacked(shard).map_err(failed)?;
            let part = bytes.get(span.offset as usize..(span.offset + span.size) as usize);
            return part.map(<[u8]>::to_vec).ok_or_else(|| failed("changed since it was opened".into()));
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(span.offset))?;
            let mut bytes = Vec::new();
            file.take(span.size).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| failed(error.to_string()))?;
        if bytes.len() as u64 != span.size {
            return Err(failed("became shorter since it was opened".into()));
        }
        Ok(bytes)
    }

    /// A compressed shard, unpacked. Others wait while one is being unpacked, which also bounds the memory.
    fn unpacked(&self, shard: u32) -> Result<Arc<Vec<u8>>, String> {
        let mut cached = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = cached.iter().position(|(number, _)| *number == shard) {
            let entry = cached.remove(place);
            cached.push(entry);
        } else {
            let surplus = (cached.len() + 1).saturating_sub(CACHED_SHARD_COUNT);
            cached.drain(..surplus);
            let mut bytes = Vec::new();
            let mut reader = open_compressed(&self.shards[shard as usize].path).map_err(|error| error.to_string())?;
            reader.read_to_end(&mut bytes).map_err(cut_short)?;
            cached.push((shard, Arc::new(bytes)));
        }
        Ok(Arc::clone(&cached[cached.len() - 1].1))
    }
}

fn parsed(bytes: &[u8], parse: impl Fn(&[u8]) -> Result<Description, String>, path: &Path) -> Result<Description, DataError> {
    parse(bytes).map_err(|reason| DataError::Shard { path: path.to_path_buf(), reason })
}

/// Gathers samples while tar entries go by.
#[derive(Default)]
struct Collector {
    rule: CaptionRule,
    keys: Vec<String>,
    entries: Vec<SampleEntry>,
    problems: Vec<Problem>,
    shard: u32,
    shard_stem: String,
    keys_in_shard: BTreeSet<String>,
    current: Option<Gathered>,
}

/// The files of one sample seen so far.
#[derive(Default)]
struct Gathered {
    key: String,
    picture: Option<Span>,
    text: Option<Span>,
    json: Option<Span>,
    /// Only looked into under [`CaptionRule::Required`].
    has_caption: bool,
    /// Why this sample cannot be used.
    problem: Option<ProblemKind>,
}

impl Collector {
    fn start_shard(&mut self, shard: u32, stem: &str) {
        self.shard = shard;
        self.shard_stem = stem.to_owned();
        self.keys_in_shard.clear();
    }

    /// Takes note of one entry of a tar.
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), String> {
        let path_bytes = entry.path_bytes().into_owned();
        let path = std::str::from_utf8(&path_bytes).map_err(|_| format!("expected a file name in UTF-8, found {:?}", String::from_utf8_lossy(&path_bytes)))?;
        let path = path.strip_prefix("./").unwrap_or(path);
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        let Some((stem, extension)) = name.split_once('.').filter(|(stem, _)| !stem.is_empty()) else { return Ok(()) };
        let key = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
        let extension = extension.to_lowercase();
        let span = Span { offset: entry.raw_file_position(), size: entry.size() };
        if self.current.as_ref().is_none_or(|current| current.key != key) {
            self.finish_sample();
            self.current = Some(Gathered { key, ..Gathered::default() });
        }
        let rule = self.rule;
        let Some(current) = self.current.as_mut() else { return Ok(()) };
        match extension.as_str() {
            kind if picture::EXTENSIONS.contains(&kind) => {
                let is_second = current.picture.replace(span).is_some();
                current.problem = current.problem.take().or(is_second.then_some(ProblemKind::DuplicateKey));
            }
            kind if picture::UNSUPPORTED_EXTENSIONS.contains(&kind) => current.problem = Some(walk::unsupported_format()),
            "txt" | "caption" => {
                current.text = Some(span);
                current.look_into(entry, rule, Description::from_text)?;
            }
            "json" => {
                current.json = Some(span);
                current.look_into(entry, rule, Description::from_json_bytes)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn finish_sample(&mut self) {
        let Some(Gathered { key, picture, text, json, has_caption, problem }) = self.current.take() else { return };
        let full_key = format!("{}/{key}", self.shard_stem);
        let described = text.is_some() || json.is_some();
        let problem = match (picture, problem) {
            (None, None) if !described => return, // neither picture nor caption: a README, a class number
            (_, Some(kind)) => Some(kind),
            _ if self.keys_in_shard.contains(&key) => Some(ProblemKind::DuplicateKey),
            (None, None) => Some(ProblemKind::CaptionWithoutPicture),
            (Some(_), None) if self.rule == CaptionRule::Required && !has_caption => Some(ProblemKind::PictureWithoutCaption),
            (Some(_), None) => None,
        };
        match (problem, picture) {
            (None, Some(picture)) => {
                self.keys_in_shard.insert(key);
                self.keys.push(full_key);
                self.entries.push(SampleEntry { shard: self.shard, picture, text, json });
            }
            (problem, _) => self.problems.extend(problem.map(|kind| Problem { place: full_key, kind })),
        }
    }
}

impl Gathered {
    /// Where captions are required, a description must be readable and hold one; elsewhere it is left for later.
    fn look_into<R: Read>(&mut self, entry: &mut Entry<'_, R>, rule: CaptionRule, parse: impl Fn(&[u8]) -> Result<Description, String>) -> Result<(), String> {
        if entry.size() > DESCRIPTION_LIMIT {
            self.problem = Some(ProblemKind::Unreadable(format!("expected a caption of at most {DESCRIPTION_LIMIT} bytes, found {}", entry.size())));
        } else if rule == CaptionRule::Required {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(cut_short)?;
            match parse(&bytes) {
                Ok(description) => self.has_caption |= !description.captions.is_empty(),
                Err(reason) => self.problem = Some(ProblemKind::Unreadable(reason)),
            }
        }
        Ok(())
    }
}

fn index_plain(path: &Path, collected: &mut Collector) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut archive = Archive::new(BufReader::new(&file));
    let end = add_entries(archive.entries_with_seek().map_err(cut_short)?, Some(length), collected)?;
    let mut mark = [1u8; BLOCK as usize];
    file.seek(SeekFrom::Start(end)).and_then(|_| file.read_exact(&mut mark)).map_err(cut_short)?;
    if mark.iter().any(|&byte| byte != 0) {
        return Err(format!("expected the end-of-archive mark at byte {end}, found other data"));
    }
    Ok(())
}

fn index_compressed(path: &Path, collected: &mut Collector) -> Result<(), String> {
    let mut archive = Archive::new(open_compressed(path).map_err(|error| error.to_string())?);
    let end = add_entries(archive.entries().map_err(cut_short)?, None, collected)?;
    let mut reader = archive.into_inner();
    if reader.position < end + BLOCK {
        return Err(format!("cut short: expected the end-of-archive mark at byte {end} of the unpacked shard"));
    }
    // Reading on to the end verifies the checksum of the compressed stream.
    io::copy(&mut reader, &mut io::sink()).map_err(cut_short)?;
    Ok(())
}

/// Notes every file; returns the byte after the last one, padded to a block, where the end-of-archive mark must stand.
fn add_entries<R: Read>(entries: tar::Entries<'_, R>, length: Option<u64>, collected: &mut Collector) -> Result<u64, String> {
    let mut end = 0;
    for entry in entries {
        let mut entry = entry.map_err(cut_short)?;
        let (start, size) = (entry.raw_file_position(), entry.size());
        let stop = start.checked_add(size).and_then(|stop| stop.checked_next_multiple_of(BLOCK)).ok_or("expected a possible size in the header")?;
        if length.is_some_and(|length| start + size > length) {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            return Err(format!("cut short: `{name}` should end at byte {}, the shard ends at byte {}", start + size, length.unwrap_or_default()));
        }
        end = end.max(stop);
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => collected.add(&mut entry)?,
            tar::EntryType::GNUSparse => return Err("expected plain files, found a sparse one".into()),
            _ => {}
        }
    }
    Ok(end)
}

fn cut_short(error: io::Error) -> String {
    let hint = "hint: the shard may be cut short or not be a tar; fetch or build it again";
    format!("{error}; {hint}")
}

fn open_compressed(path: &Path) -> io::Result<Bounded<MultiGzDecoder<BufReader<File>>>> {
    Ok(Bounded { inner: MultiGzDecoder::new(BufReader::new(File::open(path)?)), position: 0 })
}

/// Counts what was read and refuses to go past [`COMPRESSED_SHARD_LIMIT`].
struct Bounded<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position += count as u64;
        if self.position > COMPRESSED_SHARD_LIMIT {
            return Err(io::Error::other(format!("expected at most {COMPRESSED_SHARD_LIMIT} bytes unpacked; hint: keep large shards as plain .tar")));
        }
        Ok(count)
    }
}
