/*
 * Latencies in a log-linear histogram: 64 buckets for each power of two, so that a value is known to 1.6 per cent.
 */
#pragma once

#include <cstdint>
#include <vector>

namespace load {

class Histogram {
 public:
  Histogram() : counts_(kBuckets, 0) {}

  void record(int64_t ns) {
    if (ns < 0) ns = 0;
    counts_[bucketOf(static_cast<uint64_t>(ns))]++;
    total_++;
    sum_ += ns;
    if (ns > max_) max_ = ns;
  }

  void add(const Histogram &other) {
    for (size_t i = 0; i < counts_.size(); i++) counts_[i] += other.counts_[i];
    total_ += other.total_;
    sum_ += other.sum_;
    if (other.max_ > max_) max_ = other.max_;
  }

  uint64_t total() const { return total_; }
  double maxUs() const { return static_cast<double>(max_) / 1e3; }
  double meanUs() const { return total_ == 0 ? 0 : static_cast<double>(sum_) / 1e3 / static_cast<double>(total_); }

  /** The latency that this share of the requests did not exceed; 0 without requests. */
  double quantileUs(double share) const {
    const auto wanted = static_cast<uint64_t>(share * static_cast<double>(total_) + 0.999999);
    uint64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); i++) {
      seen += counts_[i];
      if (seen > 0 && seen >= wanted) return static_cast<double>(middleOf(i)) / 1e3;
    }
    return 0;
  }

 private:
  static constexpr int kSubBits = 6;
  static constexpr uint64_t kSub = 1 << kSubBits;
  static constexpr size_t kBuckets = (64 - kSubBits) * kSub;

  static size_t bucketOf(uint64_t ns) {
    if (ns < kSub) return ns;
    const int shift = 63 - __builtin_clzll(ns) - kSubBits;
    return static_cast<size_t>(shift + 1) * kSub + ((ns >> shift) - kSub);
  }

  static uint64_t middleOf(size_t bucket) {
    if (bucket < kSub) return bucket;
    const uint64_t shift = bucket / kSub - 1;
    return ((bucket % kSub + kSub) << shift) + (shift == 0 ? 0 : (uint64_t{1} << (shift - 1)));
  }

  std::vector<uint64_t> counts_;
  uint64_t total_ = 0;
  int64_t sum_ = 0;
  int64_t max_ = 0;
};

}  // namespace load
