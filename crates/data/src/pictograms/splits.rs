//! What is trained on and what is held out, decided by hashes: the same names fall the same way in every build.

use std::collections::{BTreeMap, BTreeSet};

use super::Pictogram;
use super::config::{Config, SplitConfig};
use super::rasterise::Drawn;
use crate::by_hash::fraction;

/// Where a pictogram belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// For training.
    Train,
    /// Concept and style are both trained on, this pair is not: a test of composition.
    Pairs,
    /// The concept is not trained on in any style.
    Concepts,
}

impl Split {
    pub const ALL: [Self; 3] = [Self::Train, Self::Pairs, Self::Concepts];

    /// Folder name and value of the field `split`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Pairs => "pairs",
            Self::Concepts => "concepts",
        }
    }
}

/// One split for each pictogram. Concepts that some style draws as one and the same picture (the flags of Norway and Bouvet Island)
/// stand or fall together, so that no held-out picture is in training under another name.
pub(super) fn assign(config: &SplitConfig, drawn: &[Drawn]) -> Vec<Split> {
    let groups = concept_groups(drawn);
    let group_of = |one: &Drawn| groups[one.meaning.concept.as_str()];
    let mut styles_of: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for one in drawn {
        styles_of.entry(group_of(one)).or_default().insert(one.source);
    }
    let mut held_out_pairs: BTreeSet<(&str, usize)> = BTreeSet::new();
    for (&group, styles) in &styles_of {
        let rank = |&source: &usize| fraction(&[&config.seed, "pair", group, style_word(drawn, source)]);
        let mut candidates: Vec<usize> = styles.iter().copied().filter(|source| rank(source) < config.pairs).collect();
        if candidates.len() == styles.len() {
            // One style must remain in training, else the concept would be unknown.
            candidates.sort_by(|one, other| rank(one).total_cmp(&rank(other)));
            candidates.pop();
        }
        held_out_pairs.extend(candidates.into_iter().map(|source| (group, source)));
    }
    drawn
        .iter()
        .map(|one| {
            let group = group_of(one);
            if fraction(&[&config.seed, "concept", group]) < config.concepts {
                Split::Concepts
            } else if held_out_pairs.contains(&(group, one.source)) {
                Split::Pairs
            } else {
                Split::Train
            }
        })
        .collect()
}

/// The first part of the key: stable under adding and removing sources, unlike their number.
fn style_word(drawn: &[Drawn], source: usize) -> &str {
    drawn.iter().find(|one| one.source == source).and_then(|one| one.key.split('/').next()).unwrap_or_default()
}

/// The representative (alphabetically first concept) of each concept's group.
fn concept_groups(drawn: &[Drawn]) -> BTreeMap<&str, &str> {
    let concepts: BTreeSet<&str> = drawn.iter().map(|one| one.meaning.concept.as_str()).collect();
    let mut representative: BTreeMap<&str, &str> = concepts.iter().map(|&concept| (concept, concept)).collect();
    let mut first_with: BTreeMap<&[u8], &str> = BTreeMap::new();
    for one in drawn {
        let earlier = *first_with.entry(&one.png).or_insert(&one.meaning.concept);
        let (own, other) = (representative[one.meaning.concept.as_str()], representative[earlier]);
        if own != other {
            let (kept, replaced) = if own < other { (own, other) } else { (other, own) };
            // Joins are rare (a few flags), so going through all concepts each time costs nothing.
            representative.values_mut().filter(|group| **group == replaced).for_each(|group| *group = kept);
        }
    }
    representative
}

/// Keeps `count` concepts: first those that most styles draw, among equals by hash.
pub(super) fn keep_concepts(config: &Config, count: usize, pictograms: &mut Vec<Pictogram>) {
    let mut styles_of: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for pictogram in pictograms.iter() {
        styles_of.entry(pictogram.meaning.concept.clone()).or_default().insert(pictogram.source);
    }
    let mut ranked: Vec<(String, usize, f64)> = styles_of
        .into_iter()
        .map(|(concept, styles)| {
            let hash = fraction(&[&config.splits.seed, "sample", &concept]);
            (concept, styles.len(), hash)
        })
        .collect();
    ranked.sort_by(|one, other| other.1.cmp(&one.1).then(one.2.total_cmp(&other.2)));
    let kept: BTreeSet<String> = ranked.into_iter().take(count).map(|(concept, ..)| concept).collect();
    pictograms.retain(|pictogram| kept.contains(&pictogram.meaning.concept));
}
