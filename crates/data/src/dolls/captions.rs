//! Several captions for one doll, from the templates of the recipe.

use super::config::Config;
use super::parts::{Doll, Parts};
use crate::by_hash::fraction;

/// What each template holds.
pub(super) const PLACEHOLDERS: [&str; 2] = ["{subject}", "{others}"];

/// One caption for each template, each different caption once. The first names the parts in the order of the attributes, later ones in an order of their own.
pub(super) fn write(config: &Config, parts: &Parts, doll: &Doll, key: &str) -> Vec<String> {
    let mut captions: Vec<String> = Vec::new();
    for (number, template) in config.captions.iter().enumerate() {
        let words = || parts.attributes.iter().zip(&doll.0).filter_map(|(attribute, &value)| Some((&attribute.name, attribute.values[value?].words.as_str())));
        let subject = words().find(|(name, _)| **name == config.subject).map_or("", |(_, words)| words);
        let mut others: Vec<&str> = words().filter(|(name, _)| **name != config.subject).map(|(_, words)| words).collect();
        if number > 0 {
            others.sort_by(|one, other| {
                let rank = |words: &str| fraction(&[&config.seed, "order", key, template, words]);
                rank(one).total_cmp(&rank(other))
            });
        }
        let caption = template.replace("{subject}", subject).replace("{others}", &listed(&others));
        if !captions.contains(&caption) {
            captions.push(caption);
        }
    }
    captions
}

/// `a`, `a and b`, `a, b and c`.
fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => one.to_string(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_spoken() {
        assert_eq!(listed(&["a hat"]), "a hat");
        assert_eq!(listed(&["a hat", "a robe"]), "a hat and a robe");
        assert_eq!(listed(&["a hat", "a robe", "a spear"]), "a hat, a robe and a spear");
    }
}
