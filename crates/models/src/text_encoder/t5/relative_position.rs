//! Buckets of distances (Raffel et al. 2019, section 2.1; Mesh TensorFlow's `_relative_position_bucket` for attention in both directions).

/// Which of `bucket_count` biases belongs to a key at `distance` = its place minus the query's. Keys before and after the query have half of the buckets each;
/// of each half, one half is for single distances, the other for distances that grow geometrically to `distance_limit`, the last for all beyond.
pub fn bucket(distance: i64, bucket_count: usize, distance_limit: usize) -> usize {
    let half = bucket_count / 2;
    let single = half / 2;
    let far = distance.unsigned_abs() as usize;
    let within = if far < single {
        far
    } else {
        // In f32, in the order of the reference: at exact powers one rounding more or less would be another bucket.
        let place = (far as f32 / single as f32).ln() / (distance_limit as f64 / single as f64).ln() as f32 * (half - single) as f32;
        (single + place as usize).min(half - 1)
    };
    if distance > 0 { half + within } else { within }
}
