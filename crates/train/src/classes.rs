//! Classes of pictures: what a field of their descriptions says, such as `style`.

use crate::TrainError;
use crate::pictures::Pictures;
use smalti_data::loader::Item;
use std::collections::{BTreeMap, BTreeSet};

/// The classes of a data set.
#[derive(Clone, Debug)]
pub struct Classes {
    field: String,
    /// In alphabetical order; a class's number is its place.
    names: Vec<String>,
    of_pictures: Vec<Option<usize>>,
}

impl Classes {
    /// Every value that `field` has among the training pictures, at least one; `key` is what the recipe calls the field.
    pub fn of(pictures: &Pictures, field: &str, key: &str) -> Result<Self, TrainError> {
        let dataset = pictures.training();
        let mut found = Vec::with_capacity(dataset.len());
        for index in 0..dataset.len() {
            found.push(dataset.description(index)?.fields.get(field).cloned());
        }
        let names: Vec<String> = found.iter().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        if names.is_empty() {
            let reason = format!("expected pictures whose description has the field `{field}` ({key}), found none");
            return Err(TrainError::Unfit { place: dataset.path().display().to_string(), reason });
        }
        let numbers: BTreeMap<&str, usize> = names.iter().enumerate().map(|(number, name)| (name.as_str(), number)).collect();
        let of_pictures = found.iter().map(|name| numbers.get(name.as_deref()?).copied()).collect();
        Ok(Self { field: field.to_string(), names, of_pictures })
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The class of training picture `index`; `None` where its description does not say.
    pub fn of_picture(&self, index: usize) -> Option<usize> {
        self.of_pictures.get(index).copied().flatten()
    }

    /// The same of a picture that may not be a training picture: a class that no training picture has is none.
    pub fn of_item(&self, item: &Item) -> Option<usize> {
        let name = item.fields.get(&self.field)?;
        self.names.iter().position(|class| class == name)
    }

    /// Training pictures without a class.
    pub fn unknown_count(&self) -> usize {
        self.of_pictures.iter().filter(|class| class.is_none()).count()
    }
}
