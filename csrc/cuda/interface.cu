// What kernels.h says of the library as a whole.
#include "kernels.h"
#include "portable.h"

#include <string>

extern "C" int mvlm_interface(void) { return 1; }

extern "C" const char* mvlm_error_string(int code) {
  thread_local std::string text;  // stays until this thread asks again
  const auto error = static_cast<cudaError_t>(code);
  text = std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  return text.c_str();
}

#ifndef __CUDACC__
// How the emulation runs what is launched from now on; a size of 0 is what the launch asks for.
extern "C" void mvlm_emulation_set(unsigned grid_x, unsigned grid_y, unsigned block_x, unsigned block_y, int reversed) {
  mvlm::emulation::settings = {{grid_x, grid_y}, {block_x, block_y}, reversed != 0};
}
#endif
