// What every op checks its arguments with.
#pragma once

#include <sstream>
#include <stdexcept>

namespace metamorph {

// A sentence of the parts, one after another, unless it holds: PyTorch makes a RuntimeError of it.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace metamorph
