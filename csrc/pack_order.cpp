#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "pack_plan.h"

namespace megatron_vlm {
namespace {

// The greatest distance from plan, over the sources, if `pack` took the next place; stops where it is above `least`.
double distance(const MixtureAccount& account, const std::vector<std::int64_t>& behind, std::size_t place,
                std::size_t pack, double least) {
  const std::size_t sources = behind.size();
  const std::int64_t* shares = account.shares + place * sources;
  const std::int64_t* bases = account.bases + pack * sources;
  const std::int64_t* amounts = account.amounts + pack * sources;
  double most = 0.0;
  for (std::size_t s = 0; s < sources; ++s) {
    const std::int64_t after = behind[s] + shares[s] * bases[s] - amounts[s] * kWholeShare;
    most = std::max(most, std::fabs(static_cast<double>(after)) * account.scale[s]);
    if (most > least) break;
  }
  return most;
}

}  // namespace

std::vector<std::int64_t> order_packs(const MixtureAccount& account, std::int64_t packs,
                                      std::vector<std::int64_t>& behind, std::int64_t candidates, double close_enough) {
  if (packs < 0 || candidates < 1) throw std::invalid_argument("counts are out of range");
  const std::size_t sources = behind.size();
  std::vector<std::int64_t> order(packs);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::int64_t place = 0; place < packs; ++place) {
    double least = std::numeric_limits<double>::infinity();
    std::int64_t chosen = place;
    for (std::int64_t at = place; at < packs; ++at) {
      // beyond the candidates only where none of them stays within a pack of the plan
      if (at >= place + candidates && least <= 1.0) break;
      const double found = distance(account, behind, place, order[at], least);
      if (found < least) {
        least = found;
        chosen = at;
        if (found <= close_enough) break;
      }
    }
    std::rotate(order.begin() + place, order.begin() + chosen, order.begin() + chosen + 1);
    const std::int64_t pack = order[place];
    for (std::size_t s = 0; s < sources; ++s) {
      const std::size_t at = static_cast<std::size_t>(pack) * sources + s;
      behind[s] += account.shares[static_cast<std::size_t>(place) * sources + s] * account.bases[at];
      behind[s] -= account.amounts[at] * kWholeShare;
    }
  }
  return order;
}

}  // namespace megatron_vlm
