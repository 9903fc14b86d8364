# CMake reads this file inside llama.cpp's project. scripts/environment.sh passes it to every build of llama-cpp-python.
#
# llama-cpp-python sets LLAMA_BUILD_COMMON to ON in CMake's cache. No library of its package uses this part, and it takes more
# than half of the compile time. A normal variable overrides the cache.
#
# Nothing here may change what is installed, because a change of this file does not start a new build.
set(LLAMA_BUILD_COMMON OFF)
