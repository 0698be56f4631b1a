# install.cmake: the program, the runtime library with its header, and what other builds find them
# by (pkg-config stgc; find_package(stgc), target stgc::stgc).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS stgcc RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS stgc EXPORT stgc LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
target_include_directories(stgc INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/runtime>)
install(FILES runtime/stgc.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES examples/train.c examples/train_ctypes.py DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples)

file(RELATIVE_PATH STGC_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/stgc.pc.in ${PROJECT_BINARY_DIR}/stgc.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/stgc.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(EXPORT stgc NAMESPACE stgc:: FILE stgc-targets.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/stgc)
file(WRITE ${PROJECT_BINARY_DIR}/stgc-config.cmake
  "include(\${CMAKE_CURRENT_LIST_DIR}/stgc-targets.cmake)\n")
write_basic_package_version_file(${PROJECT_BINARY_DIR}/stgc-config-version.cmake
  VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/stgc-config.cmake ${PROJECT_BINARY_DIR}/stgc-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/stgc)
