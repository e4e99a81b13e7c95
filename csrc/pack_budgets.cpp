#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "pack_plan.h"

namespace megatron_vlm {
namespace {

bool before(const Budgets& a, const Budgets& b) {
  return std::tie(a.tokens, a.patches, a.images) < std::tie(b.tokens, b.patches, b.images);
}

// Packs by what they have left: a treap, one node a state, in which every node knows the most patches and the most
// images that any state below it has left, so that a search leaves out what cannot fit.
class States {
 public:
  // The first state, in order, that has room for `need`; -1 where there is none.
  int find(const Budgets& need) const { return find(root_, need); }

  const Budgets& left(int node) const { return nodes_[node].state; }

  // Takes out the pack that came to this state last.
  std::int64_t take(int node) {
    auto& packs = nodes_[node].packs;
    const std::int64_t pack = packs.back();
    packs.pop_back();
    if (packs.empty()) {
      root_ = erase(root_, nodes_[node].state);
      unused_.push_back(node);
    }
    return pack;
  }

  void put(std::int64_t pack, const Budgets& state) {
    for (int at = root_; at >= 0;) {
      Node& node = nodes_[at];
      if (before(state, node.state)) {
        at = node.less;
      } else if (before(node.state, state)) {
        at = node.more;
      } else {
        node.packs.push_back(pack);
        return;
      }
    }
    const int fresh = make(pack, state);
    const auto [less, more] = split(root_, state);
    root_ = join(join(less, fresh), more);
  }

 private:
  struct Node {
    Budgets state;
    std::vector<std::int64_t> packs;
    std::uint32_t priority;
    int less, more;
    std::int64_t most_patches, most_images;
  };

  int make(std::int64_t pack, const Budgets& state) {
    int at = static_cast<int>(nodes_.size());
    if (unused_.empty()) {
      nodes_.emplace_back();
    } else {
      at = unused_.back();
      unused_.pop_back();
    }
    // Fixed pseudo-random priorities (xorshift): they shape the tree only, and never the result.
    seed_ ^= seed_ << 13;
    seed_ ^= seed_ >> 17;
    seed_ ^= seed_ << 5;
    Node& node = nodes_[at];
    node.state = state;
    node.packs.assign(1, pack);
    node.priority = seed_;
    node.less = node.more = -1;
    refresh(at);
    return at;
  }

  void refresh(int at) {
    Node& node = nodes_[at];
    node.most_patches = node.state.patches;
    node.most_images = node.state.images;
    for (const int child : {node.less, node.more}) {
      if (child < 0) continue;
      node.most_patches = std::max(node.most_patches, nodes_[child].most_patches);
      node.most_images = std::max(node.most_images, nodes_[child].most_images);
    }
  }

  int find(int at, const Budgets& need) const {
    while (at >= 0) {
      const Node& node = nodes_[at];
      if (node.most_patches < need.patches || node.most_images < need.images) return -1;
      if (node.state.tokens >= need.tokens) {
        const int found = find(node.less, need);
        if (found >= 0) return found;
        if (node.state.patches >= need.patches && node.state.images >= need.images) return at;
      }
      at = node.more;
    }
    return -1;
  }

  // Into states before `state` and the others.
  std::pair<int, int> split(int at, const Budgets& state) {
    if (at < 0) return {-1, -1};
    if (before(nodes_[at].state, state)) {
      const auto [less, more] = split(nodes_[at].more, state);
      nodes_[at].more = less;
      refresh(at);
      return {at, more};
    }
    const auto [less, more] = split(nodes_[at].less, state);
    nodes_[at].less = more;
    refresh(at);
    return {less, at};
  }

  int join(int less, int more) {
    if (less < 0) return more;
    if (more < 0) return less;
    if (nodes_[less].priority > nodes_[more].priority) {
      nodes_[less].more = join(nodes_[less].more, more);
      refresh(less);
      return less;
    }
    nodes_[more].less = join(less, nodes_[more].less);
    refresh(more);
    return more;
  }

  int erase(int at, const Budgets& state) {
    Node& node = nodes_[at];
    if (before(state, node.state)) {
      node.less = erase(node.less, state);
    } else if (before(node.state, state)) {
      node.more = erase(node.more, state);
    } else {
      return join(node.less, node.more);
    }
    refresh(at);
    return at;
  }

  std::vector<Node> nodes_;
  std::vector<int> unused_;
  int root_ = -1;
  std::uint32_t seed_ = 2463534242u;
};

}  // namespace

Placement pack_within_budgets(const std::vector<Budgets>& items, const std::int64_t* order, const Budgets& capacity) {
  Placement result;
  result.pack.assign(items.size(), -1);
  States states;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto index = static_cast<std::size_t>(order[i]);  // a negative one becomes too large
    if (index >= items.size() || result.pack[index] >= 0) throw std::invalid_argument("order is not a permutation");
    const Budgets& need = items[index];
    if (need.tokens < 1 || need.tokens > capacity.tokens || need.patches < 0 || need.patches > capacity.patches ||
        need.images < 0 || need.images > capacity.images) {
      throw std::invalid_argument("an item does not fit an empty pack");
    }
    const int node = states.find(need);
    const Budgets room = node < 0 ? capacity : states.left(node);
    const std::int64_t pack = node < 0 ? result.packs++ : states.take(node);
    result.pack[index] = pack;
    const Budgets left{room.tokens - need.tokens, room.patches - need.patches, room.images - need.images};
    if (left.tokens > 0) states.put(pack, left);
  }
  return result;
}

}  // namespace megatron_vlm
