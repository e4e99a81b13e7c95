#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <stdexcept>

#include "pack_plan.h"

namespace megatron_vlm {
namespace {

struct Group {
  std::vector<std::int64_t> packs;
  double cost = 0.0;
};

// The greatest over the mean of a step, from which on exchanges are not worth the search.
constexpr double kCloseEnough = 1.0001;

class Balancer {
 public:
  Balancer(const std::vector<double>& costs, std::int64_t ranks, std::int64_t micro_batches)
      : costs_(costs), ranks_(ranks), micro_batches_(micro_batches), total_(ranks, 0.0) {}

  // Steps from packs first up to end, appended to `order`.
  void window(std::int64_t first, std::int64_t end, std::vector<std::int64_t>& order) {
    std::vector<Group> groups = deal(first, end);
    std::stable_sort(groups.begin(), groups.end(), costlier);
    std::vector<std::vector<Group>> steps;
    for (std::size_t g = 0; g < groups.size(); g += ranks_) {
      steps.emplace_back(groups.begin() + g, groups.begin() + g + ranks_);
      refine(steps.back());
    }
    std::stable_sort(steps.begin(), steps.end(), [](const auto& a, const auto& b) { return place(a) < place(b); });
    for (auto& step : steps) append(step, order);
  }

 private:
  static bool costlier(const Group& a, const Group& b) { return a.cost > b.cost; }

  static std::int64_t place(const std::vector<Group>& step) {
    std::int64_t sum = 0;
    for (const Group& group : step) sum += std::accumulate(group.packs.begin(), group.packs.end(), std::int64_t{0});
    return sum;
  }

  std::vector<Group> deal(std::int64_t first, std::int64_t end) const {
    std::vector<std::int64_t> packs(end - first);
    std::iota(packs.begin(), packs.end(), first);
    std::stable_sort(packs.begin(), packs.end(), [this](auto a, auto b) { return costs_[a] > costs_[b]; });
    std::vector<Group> groups(packs.size() / micro_batches_);
    std::vector<std::size_t> turn(groups.size());
    std::iota(turn.begin(), turn.end(), std::size_t{0});
    for (std::size_t next = 0; next < packs.size();) {
      std::stable_sort(turn.begin(), turn.end(), [&](auto a, auto b) { return groups[a].cost < groups[b].cost; });
      for (const std::size_t g : turn) {
        groups[g].packs.push_back(packs[next]);
        groups[g].cost += costs_[packs[next]];
        ++next;
      }
    }
    return groups;
  }

  // Every exchange lowers the greatest cost or the number of groups that have it; the bound on rounds is for rounding.
  void refine(std::vector<Group>& step) const {
    double total = 0.0;
    for (const Group& group : step) total += group.cost;
    for (std::int64_t round = 0; round < ranks_ * micro_batches_; ++round) {
      const auto most = std::max_element(step.begin(), step.end(), [](auto& a, auto& b) { return a.cost < b.cost; });
      if (most->cost * static_cast<double>(ranks_) <= total * kCloseEnough) return;
      Group* with = nullptr;
      std::size_t give = 0, get = 0;
      double least = most->cost;  // the greater of the two costs after the exchange
      for (Group& other : step) {
        if (&other == &*most) continue;
        for (std::size_t i = 0; i < most->packs.size(); ++i) {
          for (std::size_t j = 0; j < other.packs.size(); ++j) {
            const double moved = costs_[most->packs[i]] - costs_[other.packs[j]];
            const double after = std::max(most->cost - moved, other.cost + moved);
            if (after < least) {
              least = after;
              with = &other;
              give = i;
              get = j;
            }
          }
        }
      }
      if (with == nullptr) return;
      std::swap(most->packs[give], with->packs[get]);
      sum(*most);
      sum(*with);
    }
  }

  void sum(Group& group) const {
    group.cost = 0.0;
    for (const auto pack : group.packs) group.cost += costs_[pack];
  }

  void append(std::vector<Group>& step, std::vector<std::int64_t>& order) {
    std::stable_sort(step.begin(), step.end(), costlier);
    std::vector<std::int64_t> ranks(ranks_);
    std::iota(ranks.begin(), ranks.end(), std::int64_t{0});
    std::stable_sort(ranks.begin(), ranks.end(), [this](auto a, auto b) { return total_[a] < total_[b]; });
    const std::size_t base = order.size();
    order.resize(base + ranks_ * micro_batches_);
    for (std::int64_t g = 0; g < ranks_; ++g) {
      std::sort(step[g].packs.begin(), step[g].packs.end());
      std::copy(step[g].packs.begin(), step[g].packs.end(), order.begin() + base + ranks[g] * micro_batches_);
      total_[ranks[g]] += step[g].cost;
    }
  }

  const std::vector<double>& costs_;
  std::int64_t ranks_;
  std::int64_t micro_batches_;
  std::vector<double> total_;  // of each rank, over all steps so far
};

}  // namespace

std::vector<std::int64_t> balance_packs(const std::vector<double>& costs, std::int64_t ranks,
                                        std::int64_t micro_batches, std::int64_t window) {
  const auto count = static_cast<std::int64_t>(costs.size());
  if (ranks < 1 || micro_batches < 1 || window < 1) throw std::invalid_argument("all counts must be at least 1");
  if (ranks > INT32_MAX || micro_batches > INT32_MAX || window > INT32_MAX) {
    throw std::invalid_argument("a count is out of range");
  }
  if (count % (ranks * micro_batches) != 0) throw std::invalid_argument("the packs do not fill whole steps");
  for (const double cost : costs) {
    if (!std::isfinite(cost)) throw std::invalid_argument("costs must be finite");  // sorting needs an order
  }
  Balancer balancer(costs, ranks, micro_batches);
  std::vector<std::int64_t> order;
  order.reserve(count);
  const std::int64_t step = ranks * micro_batches;
  for (std::int64_t first = 0; first < count;) {
    const std::int64_t steps = std::min(window, (count - first) / step);
    balancer.window(first, first + steps * step, order);
    first += steps * step;
  }
  return order;
}

}  // namespace megatron_vlm
