// What libswsl exports: the library is built with hidden visibility, so that a symbol is public on purpose.
#pragma once

#if __cplusplus <= 201703L
#error "swsl needs C++20: compile with -std=c++20, or in CMake link swsl::swsl, which asks for it"
#endif

#define SWSL_API __attribute__((visibility("default")))
