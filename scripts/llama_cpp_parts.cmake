# CMake reads this file inside llama.cpp's own project; scripts/environment.sh names it for every build of llama-cpp-python.
#
# llama-cpp-python forces LLAMA_BUILD_COMMON on in CMake's cache. No library of its package uses that part, and it costs more than half
# of the compile time. A plain variable comes before the cache, so this one wins.
#
# Nothing here may change what is installed: an installation is not built anew when this file changes.
set(LLAMA_BUILD_COMMON OFF)
