# Defines swsl::torch, an imported target for the LibTorch of an installed torch wheel or an unpacked LibTorch.
#
# find_package(Torch) is not used: for a CUDA build of torch it demands a complete CUDA toolkit, even of programs that
# contain no CUDA code. The headers and shared libraries are all that is needed, and they are where they always are.
#
# In:  SWSL_TORCH_PREFIX, the directory that holds torch's include/ and lib/. When empty it is looked for next to Torch_DIR,
#      under CMAKE_PREFIX_PATH, and in the Python interpreter (Python_EXECUTABLE, else python3 or python on PATH).
#      SWSL_CUDA, OFF to leave torch's CUDA libraries unlinked.
# Out: swsl::torch, and swsl::torch_python where torch has it; SWSL_TORCH_PREFIX, SWSL_TORCH_VERSION, SWSL_TORCH_HAS_CUDA,
#      SWSL_LINKS_CUDA (0 or 1). Where there is none: SWSL_TORCH_MISSING, which says what was expected.

function(_swsl_find_torch_prefix out)
  set(candidates "")
  if(Torch_DIR)
    list(APPEND candidates "${Torch_DIR}/../../..")
  endif()
  foreach(path IN LISTS CMAKE_PREFIX_PATH)
    list(APPEND candidates "${path}" "${path}/../..")  # torch.utils.cmake_prefix_path is <prefix>/share/cmake
  endforeach()
  foreach(path IN LISTS candidates)
    if(EXISTS "${path}/include/torch/script.h")
      get_filename_component(path "${path}" REALPATH)
      set(${out} "${path}" PARENT_SCOPE)
      return()
    endif()
  endforeach()

  set(python "${Python_EXECUTABLE}")
  if(NOT python)
    find_program(_swsl_python NAMES python3 python NO_CACHE)
    set(python "${_swsl_python}")
  endif()
  if(python)
    # find_spec does not run torch, which would take seconds.
    execute_process(
      COMMAND "${python}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed AND EXISTS "${path}/include/torch/script.h")
      set(${out} "${path}" PARENT_SCOPE)
    endif()
  endif()
endfunction()

if(NOT SWSL_TORCH_PREFIX)
  _swsl_find_torch_prefix(SWSL_TORCH_PREFIX)
endif()
if(NOT EXISTS "${SWSL_TORCH_PREFIX}/include/torch/script.h")
  set(SWSL_TORCH_MISSING
    "no LibTorch found (SWSL_TORCH_PREFIX is \"${SWSL_TORCH_PREFIX}\"): install torch in the Python that CMake sees \
(-DPython_EXECUTABLE=...), or unpack LibTorch and pass -DSWSL_TORCH_PREFIX=/path/to/libtorch")
  return()
endif()

# The macros moved in torch 2.9.
set(SWSL_TORCH_VERSION "")
foreach(header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
  if(NOT SWSL_TORCH_VERSION AND EXISTS "${SWSL_TORCH_PREFIX}/include/${header}")
    file(STRINGS "${SWSL_TORCH_PREFIX}/include/${header}" _lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
    if(_lines MATCHES "MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+)")
      set(SWSL_TORCH_VERSION "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${CMAKE_MATCH_3}")
    endif()
  endif()
endforeach()
if(SWSL_TORCH_VERSION VERSION_LESS 2.8)
  set(SWSL_TORCH_MISSING "torch 2.8 or later expected, found \"${SWSL_TORCH_VERSION}\" in ${SWSL_TORCH_PREFIX}")
  return()
endif()

set(_swsl_suffix ${CMAKE_SHARED_LIBRARY_SUFFIX})
set(SWSL_TORCH_HAS_CUDA OFF)
if(EXISTS "${SWSL_TORCH_PREFIX}/lib/libtorch_cuda${_swsl_suffix}")
  set(SWSL_TORCH_HAS_CUDA ON)
endif()

set(SWSL_LINKS_CUDA 0)
if(SWSL_TORCH_HAS_CUDA AND NOT SWSL_CUDA STREQUAL "OFF")
  set(SWSL_LINKS_CUDA 1)
endif()

if(NOT TARGET swsl::torch)
  add_library(swsl::torch INTERFACE IMPORTED)
  target_include_directories(swsl::torch SYSTEM INTERFACE
    "${SWSL_TORCH_PREFIX}/include" "${SWSL_TORCH_PREFIX}/include/torch/csrc/api/include")
  target_compile_features(swsl::torch INTERFACE cxx_std_20)
  target_link_libraries(swsl::torch INTERFACE
    "${SWSL_TORCH_PREFIX}/lib/libtorch_cpu${_swsl_suffix}" "${SWSL_TORCH_PREFIX}/lib/libc10${_swsl_suffix}" Threads::Threads)
  set(_swsl_loaded "${SWSL_TORCH_PREFIX}/lib/libtorch_cpu${_swsl_suffix}")
  if(SWSL_LINKS_CUDA)
    list(APPEND _swsl_loaded "${SWSL_TORCH_PREFIX}/lib/libtorch_cuda${_swsl_suffix}" "${SWSL_TORCH_PREFIX}/lib/libc10_cuda${_swsl_suffix}")
    # What these need themselves lies in wheels of NVIDIA, which only the loader has to find.
    target_link_options(swsl::torch INTERFACE "LINKER:--allow-shlib-undefined")
  endif()
  # A program need not call a symbol of these for them to be needed: loading them registers the operators, and a program knows
  # where they are when libswsl does not. So the linker must not drop them.
  if(NOT APPLE)  # whose linker drops nothing
    target_link_options(swsl::torch INTERFACE
      "LINKER:--push-state,--no-as-needed" ${_swsl_loaded} "LINKER:--pop-state")
  endif()
endif()

if(NOT TARGET swsl::torch_python AND EXISTS "${SWSL_TORCH_PREFIX}/lib/libtorch_python${_swsl_suffix}")
  add_library(swsl::torch_python INTERFACE IMPORTED)
  target_link_libraries(swsl::torch_python INTERFACE swsl::torch "${SWSL_TORCH_PREFIX}/lib/libtorch_python${_swsl_suffix}")
endif()
